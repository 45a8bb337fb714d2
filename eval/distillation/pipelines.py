"""Do the pipelines for users' models run? Each one, on random weights of the very shapes, from a filled hub cache.

    python eval/distillation/pipelines.py [--only bert-base-sst2]

A hub cache is filled with what the hub would give: BERT-base, RoBERTa-base, GPT-2 and SmolLM2-135M as config, random
weights and a small tokenizer, under the names that the pipelines ask for. Data sets stand in as local files with the
columns of the real ones. Every training stage takes two steps on a few short rows; export and INT8 follow, nothing is
measured. The figures say that a pipeline runs and what that takes, and nothing of quality. One pipeline at a time, each
in a process of its own; written to `eval/results/distillation-pipelines.json` after each, and skipped when it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "eval" / "results" / "distillation-pipelines.json"
WORK = ROOT / "runs" / "distillation-pipelines"
COMMIT = "0" * 40
STEPS, ROWS, TOKENS, VOCABULARY = 2, 24, 32, 2000
MODELS: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-uncased": {"model_type": "bert", "vocab_size": 30522},
    "FacebookAI/roberta-base": {
        "model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
    "openai-community/gpt2": {"model_type": "gpt2"},
    "HuggingFaceTB/SmolLM2-135M": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
}  # fmt: skip
PIPELINES = sorted(
    path
    for path in (ROOT / "pipelines").glob("*.yaml")
    if path.stem.startswith(("bert-base-", "roberta-base-", "gpt2-wikitext", "smollm2-wikitext"))
)


def texts(split: str) -> list[str]:
    rows = (ROOT / "eval" / "data" / "era_tiny" / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(row)["text"] for row in rows]


def fill_cache(name: str, cache: Path) -> None:
    """A repository as the hub's client leaves it."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    if (repository / "refs" / "main").exists():
        return
    settings = dict(MODELS[name])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if config.model_type in ("gpt2", "llama") else AutoModel
    auto.from_config(config).save_pretrained(snapshot)
    tokenizer_like(config.model_type, config.vocab_size).save_pretrained(snapshot)
    transformers.utils.logging.set_verbosity_error()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def tokenizer_like(model_type: str, n_tokens: int) -> Any:
    """A tokenizer of the model's own class with few words; BERT's, with which students are made, in full length."""
    from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
    from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer

    if model_type == "bert":
        pieces = BertWordPieceTokenizer(lowercase=True)
        pieces.train_from_iterator(texts("train"), vocab_size=VOCABULARY, show_progress=False)
        vocab = pieces.get_vocab()
        return BertTokenizer(vocab=vocab | {f"[unused{i}]": i for i in range(len(vocab), n_tokens)})
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if model_type == "roberta" else ["<|endoftext|>"]
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(texts("train"), vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    learned = json.loads(pairs.to_str())["model"]
    kind = RobertaTokenizer if model_type == "roberta" else GPT2Tokenizer  # SmolLM2's is one of GPT-2's
    return kind(vocab=learned["vocab"], merges=[tuple(merge) for merge in learned["merges"]])


def stand_in(pipeline: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same pipeline with local rows in place of hub data, and few and short steps."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = pipeline["data"].get("columns", {})
    labels = pipeline["model"].get("labels")
    for split in ("train", "validation", "test"):
        rows = texts(split)[:ROWS]
        path = folder / f"{split}.{'jsonl' if labels else 'txt'}"
        if labels:
            names = {
                column: columns.get(column, column)
                for column in ("text", "text_pair")
                if column == "text" or column in columns
            }
            made = [{**dict.fromkeys(names.values(), text), "label": i % len(labels)} for i, text in enumerate(rows)]
            path.write_text("".join(json.dumps(row) + "\n" for row in made))
        else:
            path.write_text("\n".join(rows) + "\n")
        pipeline["data"][split] = {"path": str(path)}
    pipeline["data"] |= {"max_tokens": TOKENS, "calibration_rows": 16}
    for stage in pipeline["stages"]:
        if "training" in stage:
            stage["training"] |= {"max_steps": STEPS, "batch_size": 4, "gradient_accumulation": 1}
    return pipeline


def run_one(path: Path) -> dict[str, Any]:
    """In this process: the pipeline to its last stage."""
    cache = WORK / "hub"
    os.environ.update(HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    pipeline = yaml.safe_load(path.read_text())
    fill_cache(pipeline["model"]["hub"], cache)
    import compressor

    folder = WORK / path.stem
    shutil.rmtree(folder, ignore_errors=True)
    tried = folder / path.name
    made = stand_in(pipeline, folder / "data")
    tried.write_text(yaml.safe_dump(made, sort_keys=False))
    begun = time.monotonic()
    result = compressor.run(tried, out=folder / "run", until=made["stages"][-1]["id"])
    stages = [
        (
            name,
            {"kind": one.record.kind, "parameters": one.record.realised["parameters"], "cpu_s": one.record.cpu_s},
        )
        for name, one in result.checkpoints.items()
    ]
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"stages": stages, "wall_s": time.monotonic() - begun, "peak_memory_mb": peak / 1024}


def write(results: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    lines = [
        "# The pipelines for users' models, run on random weights of their very shapes", "",
        *(__doc__ or "").split("\n\n")[2].splitlines(), "",
        "| pipeline | stages that ran (parameters) | CPU-seconds | peak memory |", "| --- | --- | ---: | ---: |",
    ]  # fmt: skip
    for name, found in sorted(results.items()):
        stages = ", ".join(
            f"{stage} ({one['parameters'] / 1e6:.1f} M)" for stage, one in found["stages"] if stage != "model"
        )
        cpu_s = sum(one["cpu_s"] for _, one in found["stages"])
        lines.append(f"| {name} | {stages} | {cpu_s:.0f} | {found['peak_memory_mb']:,.0f} MB |")
    missing = [path.stem for path in PIPELINES if path.stem not in results]
    lines += ["", f"Not run yet: {', '.join(missing) or 'none'}.", ""]
    RESULTS.with_suffix(".md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--one", type=Path, help="for the child processes")
    arguments = parser.parse_args()
    if arguments.one:
        print("DONE " + json.dumps(run_one(arguments.one)))
        return
    WORK.mkdir(parents=True, exist_ok=True)
    for path in PIPELINES:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if arguments.only not in path.stem or path.stem in results:
            continue
        done = subprocess.run([sys.executable, __file__, "--one", str(path)], capture_output=True, text=True)
        line = next((line for line in done.stdout.splitlines() if line.startswith("DONE ")), None)
        if line is None:
            raise SystemExit(f"{path.stem} failed:\n{done.stderr[-3000:]}")
        results[path.stem] = json.loads(line.removeprefix("DONE "))
        write(results)
        print(f"{path.stem}: {results[path.stem]['wall_s']:.0f} s", flush=True)
        shutil.rmtree(WORK / path.stem, ignore_errors=True)


if __name__ == "__main__":
    main()
