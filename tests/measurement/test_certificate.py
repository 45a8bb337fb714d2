"""Certificates: given where everything is shown, and refused with the reason wherever anything is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import accuracy, candidate
from made_up import report as made_up

from compressor.errors import UserError
from compressor.measurement.certificate import certify_candidate
from compressor.measurement.labels import with_labels
from compressor.schema.certificate import Certificate, CertifiedFile, read_certificates
from compressor.schema.report import Candidate, Quality
from compressor.spec.evaluation import Goal

GOAL = Goal(metric="accuracy", max_drop_points=1.0)
MACHINE = {"cpu": "a processor", "runtime": "onnxruntime 1.31.1"}


def labelled(row: Quality, *, lost: int = 0, base: bool = False) -> Quality:
    """The row with the recall of two labels of 200 rows each; `lost` rows of the second one are lost."""
    labels = np.repeat([0, 1], 200)
    right, wrong = labels.copy(), labels.copy()
    wrong[200 : 200 + lost] = 0
    got, other = (right, None) if base else (wrong, right)
    return with_labels((row,), got, other, labels, names=("no", "yes"), against="t")[0]


def certified(
    one: Candidate, base: Candidate, *, goals: tuple[Goal, ...] = (GOAL,), limit: float | None = None, **parts: Any
) -> Certificate:
    machine = parts.pop("machine", MACHINE)
    data = {"test": {"digest": "d", "rows": 400}}
    report = made_up().model_copy(update={"candidates": (base, one), "data": data, **parts})
    ids = ("teacher", "int8")
    files = {id_: CertifiedFile(candidate=id_, variant="v", file="f", sha256="s", checkpoint="c") for id_ in ids}
    return certify_candidate(report, one, files=files, goals=goals, max_label_drop_points=limit, machine=machine)


TEACHER = candidate("teacher", quality=(labelled(accuracy(0.865), base=True),))
GOOD = candidate("int8", quality=(labelled(accuracy(0.866, (-0.004, 0.006))),))


def test_everything_shown_is_certified_and_told_label_by_label() -> None:
    found = certified(GOOD, TEACHER)
    assert found.certified and found.reasons == ()
    assert [(one.metric, one.label, one.status) for one in found.figures] == [
        ("accuracy", None, "met"),
        ("recall", "no", "no limit"),
        ("recall", "yes", "no limit"),
    ]
    assert found.figures[0].delta == pytest.approx(0.001) and found.figures[0].delta_low == -0.004
    assert found.sentence() == "certified on a processor, onnxruntime 1.31.1"
    assert found.limits == ({"metric": "accuracy", "against": "baseline", "max_drop_points": 1.0},)


@pytest.mark.parametrize(
    ("one", "options", "reason"),
    [
        (GOOD, {"goals": ()}, "it was held to no limit on quality"),
        (candidate("int8", quality=(accuracy(0.866, (-0.03, 0.03)),)), {}, "accuracy: not shown ("),
        (candidate("int8", quality=(accuracy(0.8, (-0.09, -0.05)),)), {}, "accuracy: missed ("),
        (candidate("int8", quality=(accuracy(0.866),)), {}, "accuracy: not shown ("),
        (candidate("int8"), {}, "its quality was not judged"),
        (GOOD, {"goals": (Goal(metric="macro_f1", max_drop_points=1.0),)}, "macro_f1 was not judged"),
        (candidate("int8", quality=(labelled(accuracy(0.866, (-0.004, 0.006)), lost=30),)), {"limit": 5.0},
         "recall of 'yes': missed (at most 5 points below the baseline)"),
        (GOOD, {"limit": 0.1}, "recall of 'no': not shown (at most 0.1 points below the baseline)"),
        (candidate("int8", quality=(accuracy(0.866, (-0.004, 0.006)),)), {"limit": 1.0}, "its labels were not judged"),
        (GOOD, {"machine": {"runtime": "x"}}, "unknown: cpu"),
        (GOOD, {"data": {"test": {"rows": 400}}}, "the rows that it was judged on have no digest"),
        (GOOD, {"baseline": "gone"}, "the baseline gone could not be judged"),
    ],
)  # fmt: skip
def test_anything_missing_is_not_certified(one: Candidate, options: dict[str, Any], reason: str) -> None:
    found = certified(one, TEACHER, **options)
    assert not found.certified
    assert any(text.startswith(reason) for text in found.reasons), found.reasons


def test_a_label_without_rows() -> None:
    rows = (accuracy(0.866, (-0.001, 0.001)),)
    row = with_labels(rows, np.zeros(4), np.zeros(4), np.zeros(4), names=("a", "b"), against="t")
    found = certified(candidate("int8", quality=row), TEACHER)
    assert found.reasons == ("no test row has the label 'b'",)


def test_the_baseline_itself() -> None:
    found = certified(TEACHER, TEACHER)
    assert found.reasons == ("it is the baseline itself: there is nothing that it could have kept or lost",)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    assert read_certificates(path) == ()
    path.write_text('{"schema": "compressor-certificates/9", "certificates": []}')
    with pytest.raises(
        UserError, match=r"certificate.json: not a compressor-certificates/1 file: .*\n  -> make it again"
    ):
        read_certificates(path)


def test_recall_by_hand() -> None:
    rows = with_labels(
        (accuracy(0.5),), np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([0, 0, 1]), names=("a", "b"), against="t"
    )
    first, second = rows[0].labels
    assert (first.n, first.recall, second.n, second.recall) == (2, 0.5, 1, 1.0)
    assert first.paired is not None and first.paired.delta == -0.5
