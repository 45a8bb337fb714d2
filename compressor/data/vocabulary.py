"""Smaller vocabularies: which tokens given texts need, and a tokenizer that has no others.

On covered text the smaller tokenizer gives the same tokens as before, under new numbers. WordPiece takes the longest
piece that it knows, and those pieces stay. BPE applies merges by rank, and the merges behind each used token stay with
all their results, so on covered words the same merges apply in the same order. In Unigram the best segmentation stays
and only worse ones leave. TextPruner (Yang et al., ACL 2022 demo) trims embeddings likewise, without the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from compressor.data.tokenize import load_tokenizer
from compressor.errors import DataError, StageError, UnsupportedError

VOCABULARY_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json",
    "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip
"""Files that name tokens by number; a trimmed tokenizer replaces them."""
_TEXTS_AT_A_TIME = 256


def needed_tokens(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> tuple[int, ...]:
    """Ids, in order, that must stay: those of the texts, special and added tokens, and what spells any other text.

    What spells other text is every single character (WordPiece with and without its prefix) and every byte token; a
    text outside the covered ones then becomes more tokens and not unknown ones.

    Raises:
        DataError: no text.
        UnsupportedError: a tokenizer that is neither WordPiece, BPE, Unigram nor WordLevel, or a BPE that marks word
            beginnings or ends with a prefix or suffix.
    """
    model = _read(tokenizer)["model"]
    vocabulary = _ids_of(model)
    used: set[int] = set()
    for chunk in _chunks(texts):
        for ids in tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]:
            used.update(ids)
    if not used:
        raise DataError("the texts to cover have no tokens", where="data", hint="give texts that are not empty")
    used |= {int(token["id"]) for token in _read(tokenizer)["added_tokens"]}
    used |= {number for token, number in vocabulary.items() if _spells(token, model)}
    if model["type"] == "BPE":
        names = {number: token for token, number in vocabulary.items()}
        made_by = _merges(model, {names[number] for number in used if number in names})
        used |= {vocabulary[left + right] for left, right in made_by}
        used |= {vocabulary[part] for pair in made_by for part in pair}
    return tuple(sorted(used))


def write_trimmed(folder: Path, kept: Sequence[int], out_dir: Path) -> PreTrainedTokenizerFast:
    """Write the tokenizer of a folder without all other tokens, renumbered in order, and load it again.

    Args:
        folder: has the whole tokenizer.
        kept: ids, increasing, as `needed_tokens` gives them.
        out_dir: gets `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        UnsupportedError: as `needed_tokens`.
        CheckpointError: what was written cannot be loaded.
    """
    tokenizer = load_tokenizer(folder)
    new = {old: number for number, old in enumerate(kept)}
    spec = _read(tokenizer)
    _trim_model(spec["model"], new)
    spec["added_tokens"] = [{**token, "id": new[token["id"]]} for token in spec["added_tokens"]]
    spec["post_processor"] = _renumbered(spec["post_processor"], new)
    spec["padding"] = spec["truncation"] = None
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    config_path = folder / "tokenizer_config.json"
    if config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
        decoder = config.get("added_tokens_decoder")
        if decoder is not None:
            config["added_tokens_decoder"] = {str(new[int(old)]): token for old, token in decoder.items()}
        (out_dir / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return load_tokenizer(out_dir)


def check_same_tokens(
    whole: PreTrainedTokenizerFast, trimmed: PreTrainedTokenizerFast, kept: Sequence[int], texts: Iterable[str]
) -> int:
    """Hold the trimmed tokenizer to the whole one on texts, special tokens included; gives the tokens compared.

    Raises:
        StageError: a text whose tokens differ.
    """
    n_tokens = 0
    for chunk in _chunks(texts):
        before, after = (one(chunk, verbose=False)["input_ids"] for one in (whole, trimmed))
        for text, wanted, found in zip(chunk, before, after, strict=True):
            if [kept[number] for number in found] != wanted:
                raise StageError(
                    f"the trimmed tokenizer reads a covered text as other tokens: {text[:60]!r} gives {len(found)} "
                    f"where the whole one gives {len(wanted)}",
                    hint="this tokenizer cannot be trimmed; leave the stage out",
                )
            n_tokens += len(wanted)
    return n_tokens


def _read(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return spec


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _TEXTS_AT_A_TIME:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _ids_of(model: dict[str, Any]) -> dict[str, int]:
    """Token -> id of the tokenizer's own vocabulary (added tokens apart)."""
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    if model["type"] not in ("WordPiece", "BPE", "WordLevel"):
        raise UnsupportedError(
            f"a tokenizer of type {model['type']} cannot be trimmed",
            hint="supported are WordPiece, BPE, Unigram and WordLevel",
        )
    if model["type"] == "BPE" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        raise UnsupportedError(
            "a BPE tokenizer that marks the inside or the end of words cannot be trimmed",
            hint="leave the stage `trim-vocabulary` out",
        )
    return dict(model["vocab"])


def _spells(token: str, model: dict[str, Any]) -> bool:
    """Whether a token stands for one character or byte, or for what is unknown."""
    prefix = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
    bare = token.removeprefix(prefix) if prefix else token
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return len(bare) == 1 or is_byte or token == model.get("unk_token")


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges, most preferred first; older files write "a b"."""
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]  # type: ignore[misc]


def _merges(model: dict[str, Any], tokens: set[str]) -> set[tuple[str, str]]:
    """The merges by which BPE builds each of these tokens.

    No merge crosses a final token's edge, and inside it the pair of lowest rank went first, so building a token from
    its own characters repeats what happened inside any text that holds it.
    """
    ranks = {pair: rank for rank, pair in enumerate(_pairs(model))}
    found: set[tuple[str, str]] = set()
    for token in tokens:
        parts = list(token)
        while len(parts) > 1:
            rank, at = min((ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break  # taken whole (`ignore_merges`) or a special token
            found.add((parts[at], parts[at + 1]))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return found


def _trim_model(model: dict[str, Any], new: dict[int, int]) -> None:
    """Take the other tokens out of a tokenizer's model, in place."""
    vocabulary = _ids_of(model)
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
        return
    model["vocab"] = {token: new[number] for token, number in vocabulary.items() if number in new}
    if model["type"] == "BPE":
        names = {number: token for token, number in vocabulary.items()}
        behind = _merges(model, {names[number] for number in new if number in names})
        model["merges"] = [list(pair) for pair in _pairs(model) if pair in behind]


def _renumbered(part: Any, new: dict[int, int]) -> Any:
    """A post-processor with its special tokens' new ids."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Sequence":
        return {**part, "processors": [_renumbered(one, new) for one in part["processors"]]}
    if part.get("type") == "TemplateProcessing":
        special = {
            name: {**token, "ids": [new[number] for number in token["ids"]]}
            for name, token in part["special_tokens"].items()
        }
        return {**part, "special_tokens": special}
    return {key: [part[key][0], new[part[key][1]]] if key in ("sep", "cls") else part[key] for key in part}
