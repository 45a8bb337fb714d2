"""What a vocabulary trim saves on real models: rows, bytes, the output layer's cost, and what it does to other text.

    python eval/fetch.py minilm smollm2 movies sotu
    python eval/pruning/vocabulary.py quality       # some minutes; may run beside other work
    python eval/pruning/vocabulary.py cost          # a minute; wants a quiet machine
    -> eval/results/vocabulary-trim.json, eval/results/vocabulary-trim.md

The vocabulary covers the training texts. Quality is judged on test texts, whose words may be new: there the trimmed
tokenizer needs more tokens, so perplexity is taken per byte. CPU-seconds are those of this process, in PyTorch.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from compressor.data.tokenize import load_tokenizer, windows
from compressor.data.vocabulary import check_same_tokens, needed_tokens, write_trimmed
from compressor.energy import identify_cpu
from compressor.methods.vocabulary import trim_embeddings

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache"
RESULTS = REPOSITORY / "eval" / "results"
CONTEXT, STRIDE, N_WINDOWS = 256, 128, 20
PAST_TOKENS, N_STEPS, N_ROUNDS = 128, 8, 15
N_SENTENCES = 200


def trimmed(
    folder: Path, model: PreTrainedModel, texts: list[str]
) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast, PreTrainedModel, dict[str, Any]]:
    """Both tokenizers, the trimmed model, and what left; equal tokens on all covered texts are checked."""
    whole = load_tokenizer(folder)
    started = time.perf_counter()
    kept = needed_tokens(whole, texts)
    small = write_trimmed(folder, kept, Path(tempfile.mkdtemp()))
    compared = check_same_tokens(whole, small, kept, texts)
    seconds = time.perf_counter() - started
    cut = trim_embeddings(copy.deepcopy(model), kept)
    counts = [sum(value.numel() for value in one.parameters()) for one in (model, cut)]
    return whole, small, cut, {
        "tokens": {"whole": int(model.config.vocab_size), "kept": len(kept)},
        "covered_tokens_compared": compared,
        "parameters": {"whole": counts[0], "kept": counts[1]},
        "fp32_bytes": {"whole": 4 * counts[0], "kept": 4 * counts[1], "saved": 4 * (counts[0] - counts[1])},
        "trim_and_check_s": round(seconds, 2),
    }  # fmt: skip


@torch.inference_mode()
def byte_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Any]:
    """exp(sum of NLL / bytes) over the same texts for every tokenizer."""
    loss, n_bytes, n_tokens = 0.0, 0, 0
    for window in windows(tokenizer, texts, context=CONTEXT, stride=STRIDE):
        ids = torch.tensor([window.ids])
        found = F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        loss += float(found[-window.n_scored :].sum())
        n_bytes += window.n_bytes
        n_tokens += window.n_scored
    return {"byte_perplexity": math.exp(loss / n_bytes), "tokens": n_tokens, "bytes": n_bytes}


def cpu_s(work: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Median CPU-seconds of two pieces of work, in turns, so that both meet the same machine."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(N_ROUNDS + 2):
        for piece, seconds in ((work, found[0]), (other, found[1])):
            started = time.process_time()
            piece()
            if number >= 2:
                seconds.append(time.process_time() - started)
    return statistics.median(found[0]), statistics.median(found[1])


@torch.inference_mode()
def decode_costs(models: tuple[PreTrainedModel, PreTrainedModel]) -> dict[str, Any]:
    """CPU-seconds a generated token: the output layer alone, and whole decode steps behind a past."""

    def steps(model: PreTrainedModel) -> Callable[[], object]:
        ids = torch.arange(PAST_TOKENS)[None] % int(model.config.vocab_size)

        def run() -> None:
            past = copy.deepcopy(started)
            for number in range(N_STEPS):
                past = model(
                    input_ids=ids[:, number : number + 1], past_key_values=past, use_cache=True
                ).past_key_values

        started = model(input_ids=ids, use_cache=True).past_key_values
        return run

    state = torch.randn(1, 1, int(models[0].config.hidden_size))

    def head(model: PreTrainedModel) -> Callable[[], object]:
        layer = model.get_output_embeddings()

        def run() -> None:
            for _ in range(4 * N_STEPS):
                layer(state)

        return run

    costs = {}
    for name, make, n in (("lm_head", head, 4 * N_STEPS), ("decode_step", steps, N_STEPS)):
        whole, kept = (value / n for value in cpu_s(make(models[0]), make(models[1])))
        costs[name] = {"whole_cpu_s_per_token": whole, "kept_cpu_s_per_token": kept, "ratio": kept / whole}
    return costs


def load_smollm2() -> tuple[Path, PreTrainedModel, str]:
    """The decoder, and the text that its vocabulary shall cover."""
    folder = CACHE / "models" / "smollm2-135m-instruct-dequantised-q4_1"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return folder, model, (CACHE / "data" / "sotu" / "train.txt").read_text(encoding="utf-8")


def smollm2_quality() -> dict[str, Any]:
    """Covered by the training addresses, judged on eight places in the test addresses."""
    folder, model, documents = load_smollm2()
    paragraphs = documents.splitlines()
    whole, small, cut, facts = trimmed(folder, model, paragraphs)
    test = (CACHE / "data" / "sotu" / "test.txt").read_text(encoding="utf-8")
    n_characters = 5 * STRIDE * N_WINDOWS
    sample = [test[start : start + n_characters // 8] for start in range(0, len(test), max(1, len(test) // 8))][:8]
    quality = {
        name: byte_perplexity(one, tokenizer, sample)
        for name, one, tokenizer in (("whole", model, whole), ("kept", cut, small))
    }
    return facts | {"covers": "SOTU, train", "judged_on": "SOTU, test", "quality": quality}


def smollm2_cost(n_kept: int) -> dict[str, Any]:
    """What decoding costs with as many tokens as were kept; which they are does not matter for that."""
    _, model, _ = load_smollm2()
    return decode_costs((model, trim_embeddings(copy.deepcopy(model), range(n_kept))))


@torch.inference_mode()
def minilm() -> dict[str, Any]:
    """The encoder, covered by the training sentences, judged on test sentences; an embedder has no perplexity."""
    folder = CACHE / "models" / "all-MiniLM-L6-v2"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    sentences = {
        split: [
            json.loads(line)["text"] for line in (CACHE / "data" / "movies" / f"{split}.jsonl").open(encoding="utf-8")
        ]
        for split in ("train", "test")
    }
    whole, small, cut, facts = trimmed(folder, model, sentences["train"])
    test = sentences["test"][:N_SENTENCES]
    vectors, n_tokens = [], []
    for one, tokenizer in ((model, whole), (cut, small)):
        rows = []
        for text in test:
            batch = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
            rows.append(one(**batch).last_hidden_state.mean(dim=1)[0])
        vectors.append(torch.stack(rows))
        n_tokens.append([len(ids) for ids in tokenizer(test)["input_ids"]])
    same = [a == b for a, b in zip(*n_tokens, strict=True)]
    cosine = F.cosine_similarity(*vectors, dim=-1)
    return facts | {
        "covers": "movie sentences, train", "judged_on": f"movie sentences, test, the first {N_SENTENCES}",
        "quality": {
            "sentences_with_as_many_tokens": sum(same) / len(same),
            "tokens": {"whole": sum(n_tokens[0]), "kept": sum(n_tokens[1])},
            "mean_cosine_to_whole": float(cosine.mean()), "least_cosine_to_whole": float(cosine.min()),
        },
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    s, m = record["smollm2-135m"], record["minilm-l6"]
    quality = s["quality"]

    def change(part: dict[str, Any]) -> str:
        return f"{part['whole']:,} -> {part['kept']:,}"

    head, step = s["lm_head"], s["decode_step"]
    ratio = quality["kept"]["byte_perplexity"] / quality["whole"]["byte_perplexity"]
    lines = [
        "# Vocabulary trim",
        "",
        "| | MiniLM-L6 | SmolLM2-135M |",
        "| --- | ---: | ---: |",
        f"| covers | {m['covers']} | {s['covers']} |",
        f"| tokens | {change(m['tokens'])} | {change(s['tokens'])} |",
        f"| covered tokens compared, all equal | {m['covered_tokens_compared']:,} | {s['covered_tokens_compared']:,} |",
        f"| parameters | {change(m['parameters'])} | {change(s['parameters'])} |",
        f"| fp32 bytes saved | {m['fp32_bytes']['saved'] / 1e6:.1f} MB | {s['fp32_bytes']['saved'] / 1e6:.1f} MB |",
        f"| output layer, CPU-s a token | none | {head['whole_cpu_s_per_token'] * 1e3:.2f} -> "
        f"{head['kept_cpu_s_per_token'] * 1e3:.2f} ms ({head['ratio']:.3f}x) |",
        f"| decode step, CPU-s a token | none | {step['whole_cpu_s_per_token'] * 1e3:.1f} -> "
        f"{step['kept_cpu_s_per_token'] * 1e3:.1f} ms ({step['ratio']:.3f}x) |",
        f"| judged on | {m['judged_on']} | {s['judged_on']} ({quality['whole']['bytes']:,} bytes) |",
        f"| tokens of the judged text | {change(m['quality']['tokens'])} | {quality['whole']['tokens']:,} -> "
        f"{quality['kept']['tokens']:,} |",
        f"| byte perplexity | an embedder has none | {quality['whole']['byte_perplexity']:.4f} -> "
        f"{quality['kept']['byte_perplexity']:.4f} ({ratio:.4f}x) |",
        f"| cosine to the whole model's vectors | mean {m['quality']['mean_cosine_to_whole']:.4f}, least "
        f"{m['quality']['least_cosine_to_whole']:.4f}; {m['quality']['sentences_with_as_many_tokens']:.1%} of the "
        "sentences have as many tokens | - |",
        "",
        f"- {record['host']}, PyTorch fp32, {record['threads']} threads; medians of {N_ROUNDS} rounds in turns, "
        f"behind {PAST_TOKENS} tokens; CPU-seconds of the process, no joules are claimed",
        "- made by `python eval/pruning/vocabulary.py quality` and `cost`; figures from "
        "[vocabulary-trim.json](vocabulary-trim.json)",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    path, part = RESULTS / "vocabulary-trim.json", sys.argv[1] if len(sys.argv) > 1 else ""
    if part == "quality":
        record = {"schema": "vocabulary-trim/1", "smollm2-135m": smollm2_quality(), "minilm-l6": minilm()}
    elif part == "cost":
        record = json.loads(path.read_text(encoding="utf-8"))
        record |= {"host": identify_cpu().name, "threads": torch.get_num_threads()}
        record["smollm2-135m"] |= smollm2_cost(record["smollm2-135m"]["tokens"]["kept"])
        (RESULTS / "vocabulary-trim.md").write_text(table(record), encoding="utf-8")
        print(table(record))
    else:
        raise SystemExit("say `quality` or `cost`")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
