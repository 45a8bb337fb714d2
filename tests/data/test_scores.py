"""Scores against scikit-learn and scipy, and against the published scripts' rules where there is no library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compressor.data.scores import answer_f1, entities, exact_match, f1_of, ndcg, pearson, rmse, spearman

NUMBERS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=40)


@settings(deadline=None)
@given(pairs=NUMBERS)
def test_correlations_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    told, true = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    if len(set(told)) == 1 or len(set(true)) == 1:
        assert math.isnan(pearson(told, true)) and math.isnan(spearman(told, true))
        return
    assert pearson(told, true) == pytest.approx(stats.pearsonr(told, true).statistic, abs=1e-9)
    assert spearman(told, true) == pytest.approx(stats.spearmanr(told, true).statistic, abs=1e-9)
    assert rmse(told, true) == pytest.approx(sklearn.metrics.root_mean_squared_error(true, told))


@settings(deadline=None)
@given(gains=st.lists(st.integers(0, 3), min_size=2, max_size=30), seed=st.integers(0, 1000))
def test_ndcg_is_that_of_scikit_learn(gains: list[int], seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(len(gains)).astype(float)  # no ties
    found = ndcg(np.array(gains), scores)
    if not any(gains):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sklearn.metrics.ndcg_score([gains], [scores], k=10))


def test_a_model_that_tells_nothing_apart_gains_nothing_from_the_order() -> None:
    assert ndcg(np.array([1, 0, 0]), np.zeros(3)) == ndcg(np.array([0, 0, 1]), np.zeros(3)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O", {("PER", 1, 3)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-PER O I-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),  # an I- without a B- begins an entity
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("S-PER B-LOC I-LOC E-LOC", {("PER", 0, 1), ("LOC", 1, 4)}),
        ("O O", set()),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_answers_are_compared_as_the_squad_script_does() -> None:
    assert exact_match("The Union!", ["a union"]) == 1
    assert exact_match("the state", ["union", "state of the union"]) == 0
    # "state union" has two of the three words of "state of union", and all its own are there: P 1, R 2/3.
    assert answer_f1("the state union", ["war", "state of the union"]) == pytest.approx(0.8)
    assert answer_f1("", []) == exact_match("", []) == 1
    assert answer_f1("something", []) == exact_match("something", []) == 0
    assert f1_of(0, 0, 0) == 0
