"""Scores of answers against references, in numpy: what validation and the test split are both judged by.

Each is held against scikit-learn or scipy (or, for entities and answers, against the published scripts' rules) in the
tests. A score that has no value, such as a correlation with a constant, is NaN.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Numbers = npt.NDArray[np.floating] | npt.NDArray[np.integer]
Entity = tuple[str, int, int]
"""(type, first word, word after the last)."""


def pearson(told: Numbers, true: Numbers) -> float:
    """Linear correlation; NaN where either side is constant."""
    one, two = told - told.mean(), true - true.mean()
    spread = float(np.sqrt((one**2).sum() * (two**2).sum()))
    return float((one * two).sum() / spread) if spread > 0 else float("nan")


def spearman(told: Numbers, true: Numbers) -> float:
    """Correlation of ranks, equal values sharing the mean of theirs; NaN where either side is constant."""
    return pearson(rankdata(told), rankdata(true))


def rmse(told: Numbers, true: Numbers) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(((told - true) ** 2).mean()))


def f1_of(n_right: int, n_told: int, n_true: int) -> float:
    """Harmonic mean of precision and recall from counts; 0 where nothing was told and nothing was true."""
    return 2 * n_right / (n_told + n_true) if n_told + n_true else 0.0


def ndcg(gains: Numbers, scores: Numbers, k: int = 10) -> float:
    """Normalised discounted cumulative gain of one query's first k (Jaervelin and Kekaelaeinen, 2002).

    Linear gains and log2 discounts, as in BEIR and trec_eval; among equal scores, the worst order counts, so that a
    model that tells nothing apart gains nothing from the order of the file.

    Args:
        gains: relevance of each passage, (n,).
        scores: what the model says of each, (n,).

    Returns:
        NaN where no passage is relevant.
    """
    discounts = 1 / np.log2(np.arange(2, min(k, gains.size) + 2))
    best = float((np.sort(gains)[::-1][:k] * discounts).sum())
    order = np.lexsort((gains, -scores))[:k]
    return float((gains[order] * discounts).sum()) / best if best > 0 else float("nan")


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence from its tags (`O`, `B-PER`, `I-PER`, and `E-`, `S-` of IOBES).

    By the rules of conlleval, as seqeval's default mode: an `I-` that follows another type or nothing begins an entity.
    """
    found: set[Entity] = set()
    start, kind = 0, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, now = tag.partition("-")
        goes_on = prefix in ("I", "E") and now == kind and kind != ""
        if kind and not goes_on:
            found.add((kind, start, position))
            kind = ""
        if prefix in ("B", "S") or (prefix in ("I", "E") and not goes_on):
            start, kind = position, now
        if prefix in ("E", "S") and kind:
            found.add((kind, start, position + 1))
            kind = ""
    return found


def exact_match(told: str, true: Iterable[str]) -> float:
    """1 where an answer equals one of the right ones, as the SQuAD script normalises them; none is right as ""."""
    return float(any(_plain(told) == _plain(answer) for answer in [*true] or [""]))


def answer_f1(told: str, true: Iterable[str]) -> float:
    """Largest F1 of an answer's words with one of the right answers, as in the SQuAD script."""
    return max(_words_f1(_plain(told).split(), _plain(answer).split()) for answer in [*true] or [""])


def _words_f1(told: list[str], true: list[str]) -> float:
    if not told or not true:
        return float(told == true)
    shared = sum((collections.Counter(told) & collections.Counter(true)).values())
    return f1_of(shared, len(told), len(true))


def _plain(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
