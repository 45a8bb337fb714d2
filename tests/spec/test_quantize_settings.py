"""Settings of a quantisation that do nothing, or ask for what the task or the data lack, are refused while reading."""

from __future__ import annotations

from collections.abc import Callable

import pytest

INT8 = "    scheme: w8a8-dynamic\n"
ONE = {
    "exclude without until": (
        INT8 + "    exclude: auto\n",
        "`exclude: auto` and `until` go together: what is left out depends on what must hold",
    ),
    "until without exclude": (
        INT8 + "    until: {metric: accuracy, max_drop_points: 1}\n",
        "`exclude: auto` and `until` go together: what is left out depends on what must hold",
    ),
    "what was searched in another scheme": (
        "    scheme: w8\n    exclude: searched\n",
        "`exclude: searched` is for w8a8-dynamic, whose costs the search weighed: w8",
    ),
    "what nobody searched": (
        INT8 + "    exclude: searched\n",
        "leaves alone what was chosen, and no stage before it chooses\n"
        "  -> put a pruning with a `budget` and `search: {precision: mixed}` before it, or name nodes in `exclude`",
    ),
    "arithmetic of another scheme": (
        "    scheme: w8\n    arithmetic: auto\n",
        "`arithmetic` is for w8a8-dynamic, and w8 would ignore it",
    ),
    "method of another scheme": (
        INT8 + "    method: gptq\n",
        "`method` is for w8 and w4, and w8a8-dynamic would ignore",
    ),
    "calibration of another scheme": (
        INT8 + "    calibration_method: entropy\n",
        "`calibration_method` is for w8a8-static, and w8a8-dynamic would ignore it",
    ),
    "limit of another metric": (
        INT8 + "    exclude: auto\n    until: {metric: accuracy, max_ratio: 1.1}\n",
        "accuracy takes `max_drop_points`, and only that",
    ),
    "metric of another task": (
        INT8 + "    exclude: auto\n    until: {metric: token_perplexity, max_ratio: 1.1}\n",
        "`token_perplexity` cannot be held on validation rows of sequence-classification",
    ),
}


@pytest.mark.parametrize("mistake", ONE)
def test_one_mistake_gives_one_message(changed: Callable[[str, str], str], mistake: str) -> None:
    new, message = ONE[mistake]
    told = changed(INT8, new)
    assert message in told
    assert told.count("job.yaml:") == 1


def test_until_needs_validation_rows(refusal: Callable[..., str], valid: str) -> None:
    text = valid.replace("  validation: {path: validation.jsonl}\n", "").replace(
        INT8, INT8 + "    exclude: auto\n    until: {metric: accuracy, max_drop_points: 1}\n"
    )
    assert "`until` holds quality on validation rows, and there are none" in refusal(text)
