"""Parity: numbers worked out by hand, laws, and the texts of refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from compressor.errors import ParityError
from compressor.graphs.parity import ParityReport, check_parity, compare_logits

logits = hnp.arrays(np.float32, (4, 3, 5), elements=st.floats(-30, 30, width=32))


def test_numbers_worked_out_by_hand() -> None:
    reference = np.array([[0.0, np.log(3.0)], [4.0, 0.0]])
    candidate = np.array([[0.0, 0.0], [4.0, 0.0]])
    report = compare_logits(reference, candidate)
    assert report.max_abs_diff == pytest.approx(np.log(3))
    assert report.max_abs_logit == 4.0
    assert report.relative == pytest.approx(np.log(3) / 4)
    assert report.top1_agreement == 0.5  # argmax of a tie is the first
    # KL((1/4, 3/4) || (1/2, 1/2)) = 1/4 ln 1/2 + 3/4 ln 3/2, and 0 for the second row
    assert report.kl_mean == pytest.approx((0.25 * np.log(0.5) + 0.75 * np.log(1.5)) / 2)
    assert report.n_positions == 2


def test_padding_is_not_compared() -> None:
    reference = np.zeros((2, 3, 4), np.float32)
    reference[..., 1] = 1.0
    candidate = reference.copy()
    candidate[1, 2, 0] = 100.0
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    assert compare_logits(reference, candidate, mask).max_abs_diff == 0.0
    assert compare_logits(reference, candidate).max_abs_diff == 100.0
    assert compare_logits(reference, candidate, mask).n_positions == 5


def test_a_tie_of_the_reference_agrees_with_either_choice() -> None:
    reference = np.array([[2.0, 2.0, 0.0]])
    assert compare_logits(reference, np.array([[1.9, 2.0, 0.0]])).top1_agreement == 1.0
    assert compare_logits(reference, np.array([[1.9, 1.9, 2.0]])).top1_agreement == 0.0


@given(logits)
def test_a_model_agrees_with_itself(reference: NDArray[np.float32]) -> None:
    report = compare_logits(reference, reference)
    assert (report.max_abs_diff, report.relative, report.top1_agreement) == (0.0, 0.0, 1.0)
    assert report.kl_mean == pytest.approx(0.0, abs=1e-12)
    check_parity(report, "fp32")


@given(logits, logits)
def test_report_is_within_its_bounds(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> None:
    report = compare_logits(reference, candidate)
    assert report.kl_mean >= 0.0 and 0.0 <= report.top1_agreement <= 1.0
    assert report.max_abs_diff >= 0.0 and report.n_positions == 12


@given(logits, st.floats(-5, 5), st.integers(0, 2**32 - 1))
def test_kl_ignores_a_shift_and_the_order_of_classes(reference: NDArray[np.float32], shift: float, seed: int) -> None:
    candidate = reference[:, :, ::-1].astype(np.float64)
    order = np.random.default_rng(seed).permutation(5)
    before = compare_logits(reference.astype(np.float64), candidate)
    after = compare_logits(reference.astype(np.float64)[..., order], candidate[..., order] + shift)
    assert after.kl_mean == pytest.approx(before.kl_mean, rel=1e-6, abs=1e-9)


@settings(max_examples=30)
@given(logits, st.floats(1e-6, 1e-1))
def test_fp32_is_refused_exactly_above_its_tolerance(reference: NDArray[np.float32], relative: float) -> None:
    wide = reference.astype(np.float64)
    wide[0, 0, 0] = 31.0  # the largest logit, so that raising it moves no top-1
    candidate = wide.copy()
    candidate[0, 0, 0] += relative * 31.0
    report = compare_logits(wide, candidate)
    assert report.top1_agreement == 1.0
    if report.relative <= 1e-4:
        check_parity(report, "fp32")
    else:
        with pytest.raises(ParityError, match=r"0\.0001 is allowed"):
            check_parity(report, "fp32")
    check_parity(report, "w8a8-dynamic")


def test_a_refusal_gives_the_numbers() -> None:
    report = ParityReport(0.25, 5.0, 0.05, 0.99, 0.1, 2000)
    with pytest.raises(ParityError) as refused:
        check_parity(report, "fp16")
    assert str(refused.value) == (
        "fp16 conversion is not faithful: logits differ by up to 0.25, that is 0.05 of the largest logit (5); "
        "0.01 is allowed; top-1 agrees on 99.0000% of 2000 positions; 99.9% needed"
        "\n  -> compare the outputs layer by layer, or leave this conversion out"
    )
    check_parity(report, "w4")  # lossy schemes are for the goals to judge
    check_parity(ParityReport(0.04, 5.0, 0.008, 0.9991, 0.1, 2000), "fp16")


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8a8-dynamic"])
def test_logits_that_are_not_finite_fail_under_every_scheme(scheme: str) -> None:
    reference = np.ones((2, 3))
    broken = reference.copy()
    broken[1, 1] = np.nan
    report = compare_logits(reference, broken)
    assert report.kl_mean == float("inf") and report.top1_agreement == 0.5
    with pytest.raises(ParityError, match=f"{scheme}: the converted model gives logits that are not finite"):
        check_parity(report, scheme)
    with pytest.raises(ParityError, match="reference logits are not finite"):
        compare_logits(broken, reference)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ParityError, match=r"differ in shape: reference \(2, 3\), candidate \(2, 4\)"):
        compare_logits(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ParityError, match=r"a mask of shape \(2,\) does not fit logits of shape \(2, 3, 4\)"):
        compare_logits(np.ones((2, 3, 4)), np.ones((2, 3, 4)), np.ones(2, int))
    with pytest.raises(ParityError, match="no logits to compare"):
        compare_logits(np.ones((2, 3, 4)), np.ones((2, 3, 4)), np.zeros((2, 3), int))


def test_where_a_vector_is_largest_is_no_choice() -> None:
    vectors = np.array([[0.5, 0.49999, 0.1]])
    report = compare_logits(vectors, vectors + np.array([[0, 2e-5, 0]]))
    with pytest.raises(ParityError, match="top-1 agrees on 0"):
        check_parity(report, "fp32")
    check_parity(report, "fp32", is_choice=False)
    with pytest.raises(ParityError, match="logits differ"):
        check_parity(compare_logits(vectors, vectors + 0.01), "fp32", is_choice=False)
