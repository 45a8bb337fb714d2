"""lm-evaluation-harness: our perplexity is its, its own loader agrees, and a local task runs through its command."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stand_ins import install_harness

from compressor.data.tokenize import load_tokenizer, windows
from compressor.errors import UnsupportedError
from compressor.measurement.folders import measure

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra [lm-eval]")
LENGTH = 64


@pytest.fixture(scope="module")
def texts(sotu_text: dict[str, Path]) -> list[str]:
    """Four texts: one shorter than a window, one as long as several."""
    lines = sotu_text["test"].read_text(encoding="utf-8").splitlines()
    return [lines[0][:120], lines[1][:1500], lines[2][:700], lines[3][:300]]


@needs_harness
def test_token_perplexity_is_the_harness_rolling_loglikelihood(tiny_gpt2_dir: Path, texts: list[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    from compressor.integrations.lm_eval import CompressorLM

    ours = CompressorLM(str(tiny_gpt2_dir), max_length=LENGTH, batch_size=2)
    requests = [SimpleNamespace(args=(text,)) for text in texts]
    rolling = sum(ours.loglikelihood_rolling(requests))
    theirs = HFLM(str(tiny_gpt2_dir), device="cpu", dtype="float32", max_length=LENGTH, batch_size=1)
    assert rolling == pytest.approx(sum(theirs.loglikelihood_rolling(requests, disable_tqdm=True)), rel=1e-5)

    # The same prefix token before each text, the same context and stride, through the ordinary measuring path.
    tokenizer = load_tokenizer(tiny_gpt2_dir)
    prefixed = [{"text": tokenizer.bos_token + text} for text in texts]
    n_tokens = sum(one.n_scored for one in windows(tokenizer, [row["text"] for row in prefixed], LENGTH + 1, LENGTH))
    assert n_tokens == sum(len(ours.tok_encode(text)) for text in texts)
    report = measure(
        tiny_gpt2_dir,
        data=prefixed,
        evaluate={"context": LENGTH + 1, "stride": LENGTH},
        workloads=[{"id": "short", "batch": 1, "input_tokens": 8}],
        target={"threads": 1},
        profile="smoke",
    )
    perplexity = next(row for row in report.candidates[0].quality if row.metric == "token_perplexity")
    assert perplexity.n == n_tokens
    assert perplexity.value == pytest.approx(math.exp(-rolling / n_tokens), rel=1e-3)


def test_without_the_harness_our_side_scores_texts_as_perplexity_does(
    tiny_gpt2_dir: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    install_harness(monkeypatch)
    from compressor.integrations.lm_eval import CompressorLM

    requests = [SimpleNamespace(args=(text,)) for text in texts]
    one, several = (CompressorLM(str(tiny_gpt2_dir), max_length=LENGTH, batch_size=size) for size in (1, 3))
    alone, together = one.loglikelihood_rolling(requests), several.loglikelihood_rolling(requests)
    assert together == pytest.approx(alone, rel=1e-5)
    # The windows that our perplexity is made of, through the stock model.
    tokenizer, stock = load_tokenizer(tiny_gpt2_dir), GPT2LMHeadModel.from_pretrained(tiny_gpt2_dir)
    expected, n_tokens = 0.0, 0
    for window in windows(tokenizer, [tokenizer.bos_token + text for text in texts], LENGTH + 1, LENGTH):
        ids = torch.tensor(window.ids)
        with torch.inference_mode():
            log_p = stock(ids[None, :-1]).logits[0].double().log_softmax(-1)  # (T - 1, V)
        expected += float(log_p[torch.arange(len(ids) - 1), ids[1:]][-window.n_scored :].sum())
        n_tokens += window.n_scored
    assert n_tokens == sum(len(one.tok_encode(text)) for text in texts)
    assert sum(alone) == pytest.approx(expected, rel=1e-5)
    whole = one.model.generate("The people of", max_new_tokens=6)[0]
    settings: dict[str, Any] = {"until": whole[3:5], "max_gen_toks": 6}
    assert one.generate_until([SimpleNamespace(args=("The people of", settings))]) == [whole.partition(whole[3:5])[0]]


def test_an_encoder_has_no_text_to_score(tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_harness(monkeypatch)
    from compressor.integrations.lm_eval import CompressorLM

    with pytest.raises(UnsupportedError, match="a sequence-classification model has no text to score"):
        CompressorLM(str(tiny_bert_dir))


@needs_harness
def test_choices_and_generation(tiny_gpt2_dir: Path) -> None:
    from compressor.integrations.lm_eval import CompressorLM

    one, several = (CompressorLM(str(tiny_gpt2_dir), batch_size=size) for size in (1, 3))
    pairs = [("The people of", " the United States"), ("", "Congress"), ("Our", " citizens and the treaty")]
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    alone = one.loglikelihood(requests, disable_tqdm=True)
    together = several.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], rel=1e-4)
    assert all(value < 0 for value, _ in alone)
    whole = one.model.generate("The people of", max_new_tokens=6)[0]
    settings: dict[str, Any] = {"until": [whole[3:5]], "max_gen_toks": 6}
    cut = one.generate_until([SimpleNamespace(args=("The people of", settings))])[0]
    assert cut == whole.partition(whole[3:5])[0] and len(cut) < len(whole)


@needs_harness
@pytest.mark.timeout(1800)
def test_a_local_task_through_the_command(tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    rows = [{"text": f"The people of the {word}"} for word in ("United States", "Congress", "treaty")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        f"""
task: local_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
    )
    command = [
        sys.executable, "-m", "compressor.integrations.lm_eval", "run", "--model", "compressor",
        "--model_args", f"pretrained={tiny_gpt2_dir},threads=1", "--tasks", "local_words",
        "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]["local_words"]
    assert results["word_perplexity,none"] > 1 and results["bits_per_byte,none"] > 0


def test_without_the_harness_the_extra_is_named() -> None:
    program = "import sys; sys.modules['lm_eval'] = None; import compressor.integrations.lm_eval"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'joule-compressor[lm-eval]'" in done.stderr
