"""A compressed language model in lm-evaluation-harness, as `--model compressor`.

    python -m compressor.integrations.lm_eval --model compressor \\
        --model_args pretrained=runs/smollm2-sotu/stages/int8-0123abcd,precision=int8 --tasks hellaswag

Importing this module registers the name; run as a program it is the harness's own command with that name known. It
scores by the same forward pass that our own perplexity is measured with, so the two agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from compressor.data.tokenize import pad
from compressor.errors import MissingPackageError, UnsupportedError
from compressor.runtime.load import CompressedModel, load
from compressor.runtime.runners import Array

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError:
    raise MissingPackageError("lm_eval", extra="lm-eval", needed_for="lm-evaluation-harness") from None

LONGEST = 8192
"""More is seen only where `max_length` says so: positions of 128k tokens are a promise that no memory here keeps."""


@register_model("compressor")
class CompressorLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """`--model compressor`.

    Args:
        pretrained: what `compressor.load` takes: a folder or a hub name.
        precision: which variant.
        runtime: where several variants fit.
        revision: of a hub repository.
        threads: of one inference.
        batch_size: rows scored together; dynamic INT8 answers depend on it.
        max_length: tokens that the model sees at once; its position table where absent.
        device: `cpu` or `cuda`.
        max_batch_size: taken because the harness gives it; not used.

    Raises:
        UnsupportedError: a model that is no language model.
    """

    def __init__(
        self,
        pretrained: str,
        precision: str | None = None,
        runtime: Any = None,
        revision: str | None = None,
        threads: int | None = None,
        batch_size: int | str = 1,
        max_length: int | None = None,
        device: Any = "cpu",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.model: CompressedModel = load(
            pretrained, precision=precision, runtime=runtime, threads=threads, device=device or "cpu", revision=revision
        )
        if not self.model.task.is_decoder:
            raise UnsupportedError(f"a {self.model.task.name} model has no text to score", where=pretrained)
        self.tokenizer = self.model.tokenizer
        self.batch_size = 1 if batch_size == "auto" else int(batch_size)
        self.max_length = max_length or _positions(self.model)
        self._name = pretrained.replace("/", "__")

    @property
    def tokenizer_name(self) -> str:
        """What the harness puts into its cache's keys."""
        return self._name

    @property
    def eot_token_id(self) -> int:
        """Ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text's first token, so that it can be predicted too."""
        return int(self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; no special tokens unless they are asked for, as the harness does for causal models."""
        return list(self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False)["input_ids"])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token predicted once, cut by the harness's own rule."""
        found = []
        for request in requests:
            (text,) = request.args
            pairs = [
                utils.make_disjoint_window(window)
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            scored = self._loglikelihood_tokens([(("", ""), *pair) for pair in pairs])
            found.append(sum(value for value, _ in scored))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Text after each prompt, up to the first stop sequence."""
        found = []
        for request in requests:
            prompt, settings = request.args
            stops = settings.get("until") or []
            stops = [stops] if isinstance(stops, str) else stops
            n_new = int(settings.get("max_gen_toks", 256))
            kept = self.tok_encode(prompt)[-(self.max_length - n_new) :]
            text = self.model.generate(
                self.tokenizer.decode(kept),
                max_new_tokens=n_new,
                do_sample=bool(settings.get("do_sample", False)),
                temperature=float(settings.get("temperature") or 1.0),
            )[0]
            found.append(min((text.partition(stop)[0] for stop in stops if stop), key=len, default=text))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        found = []
        for batch in _chunks(requests, self.batch_size):
            # The last token is only predicted; on the left goes what the model cannot see at once.
            rows = [(context + continuation)[-(self.max_length + 1) :][:-1] for _, context, continuation in batch]
            inputs = pad([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], self.eot_token_id)
            logits = self.model.runner.forward(inputs)["logits"]  # (B, T, V)
            for row, one, (_, _, continuation) in zip(rows, logits, batch, strict=True):
                found.append(_scored(one[: len(row)][-len(continuation) :], np.array(continuation)))
        return found


def _positions(model: CompressedModel) -> int:
    """How many tokens the model sees at once, by its position table; by its tokenizer where it has none."""
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("max_position_embeddings") or config.get("n_positions") or model.tokenizer.model_max_length
    return min(int(found), LONGEST)


def _scored(logits: Array, targets: Array) -> tuple[float, bool]:
    """(log-likelihood, whether greedy decoding gives the same) of the targets (T,) under logits (T, V)."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    total = float(log_p[np.arange(len(targets)), targets].sum())
    return total, bool((log_p.argmax(axis=1) == targets).all())


def _chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
