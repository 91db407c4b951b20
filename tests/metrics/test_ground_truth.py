"""Figures against a known truth equal their definitions, whatever the order of edges and however many tie."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.errors import AcdcError
from acdc.metrics import (
    acdc_auc,
    average_precision,
    best_f1,
    confusion,
    mib_auroc,
    node_scores,
    precision_recall_curve,
    recovered_at_some_threshold,
    roc_auc,
    roc_curve,
)

AREAS: dict[str, Callable[..., float]] = {
    "roc_auc": roc_auc,
    "average_precision": average_precision,
    "best_f1": best_f1,
}


@st.composite
def rankings(draw: st.DrawFn, *, degenerate: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and a truth with true and false edges."""
    score = st.sampled_from([-np.inf, -2.0, 0.0, 0.5, 1.0, 1.0 + 2**-40, np.inf])
    pairs = draw(st.lists(st.tuples(score, st.booleans()), min_size=2, max_size=12))
    scores, truth = np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])
    if not degenerate:
        truth[:2] = [True, False]
    return scores, truth


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray]:
    truth = np.array([True, False, *draw(st.lists(st.booleans(), max_size=8))])
    masks = st.lists(st.booleans(), min_size=len(truth), max_size=len(truth)).map(np.array)
    return draw(st.lists(masks, max_size=6)), truth


def mask(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


# ---- rankings ---------------------------------------------------------------------------------------------------


@given(rankings())
def test_auc_is_the_share_of_pairs_in_order_with_ties_as_half(ranking: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = ranking
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(scores[truth], scores[~truth])]
    assert roc_auc(scores, truth) == pytest.approx(np.mean(wins))
    curve = roc_curve(scores, truth)
    assert np.trapezoid(curve.true_positive_rate, curve.false_positive_rate) == pytest.approx(np.mean(wins))
    assert roc_auc(-scores, truth) == pytest.approx(1 - np.mean(wins))


@given(rankings())
def test_curves_keep_what_scores_at_least_each_threshold(ranking: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = ranking
    roc, pr = roc_curve(scores, truth), precision_recall_curve(scores, truth)
    assert (roc.false_positive_rate[0], roc.true_positive_rate[0]) == (0, 0)
    assert (roc.false_positive_rate[-1], roc.true_positive_rate[-1]) == (1, 1)
    assert (pr.recall[0], pr.precision[0]) == (0, 1)
    assert roc.thresholds.tolist() == pr.thresholds.tolist() == [np.inf, *sorted(set(scores), reverse=True)]
    for i, threshold in list(enumerate(roc.thresholds))[1:]:
        counts = confusion(scores >= threshold, truth)
        assert roc.true_positive_rate[i] == pr.recall[i] == counts.recall
        assert roc.false_positive_rate[i] == counts.false_positives / (~truth).sum()
        assert pr.precision[i] == counts.precision


@given(rankings())
def test_best_f1_and_recovery_are_over_all_thresholds(ranking: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = ranking
    kept = [np.zeros_like(truth), *(scores >= threshold for threshold in set(scores))]
    assert best_f1(scores, truth) == pytest.approx(max(confusion(k, truth).f1 for k in kept))
    assert recovered_at_some_threshold(scores, truth) == any((k == truth).all() for k in kept)
    assert recovered_at_some_threshold(scores, truth) == (best_f1(scores, truth) == 1)
    assert recovered_at_some_threshold(scores, truth) == (roc_auc(scores, truth) == 1)


@given(rankings())
def test_average_precision_sums_precision_over_the_steps_of_recall(ranking: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = ranking
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        counts = confusion(scores >= threshold, truth)
        total += (counts.recall - before) * counts.precision
        before = counts.recall
    assert average_precision(scores, truth) == pytest.approx(total)


def test_figures_worked_by_hand() -> None:
    scores, truth = [9.0, 8, 7, 7, 5, 4], mask("101100")
    assert roc_auc(scores, truth) == pytest.approx((3 + 2 + 2) / 9)
    assert average_precision(scores, truth) == pytest.approx(1 / 3 * 1 + 2 / 3 * 3 / 4)
    assert best_f1(scores, truth) == pytest.approx(6 / 7)
    assert not recovered_at_some_threshold(scores, truth)
    assert roc_curve(scores, truth).true_positive_rate == pytest.approx([0, 1 / 3, 1 / 3, 1, 1, 1])
    assert roc_curve(scores, truth).false_positive_rate == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 1])


@given(rankings(degenerate=True), st.randoms())
def test_the_order_of_edges_does_not_matter(ranking: tuple[np.ndarray, np.ndarray], random: object) -> None:
    scores, truth = ranking
    order = np.array(sorted(range(len(truth)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    for figure in AREAS.values():
        assert figure(scores[order], truth[order]) == pytest.approx(figure(scores, truth), nan_ok=True)


@pytest.mark.parametrize(("name", "chance"), [("roc_auc", 0.5), ("average_precision", 0.4), ("best_f1", 8 / 14)])
def test_all_tied_is_chance_and_a_perfect_ranking_is_one(name: str, chance: float) -> None:
    truth = mask("1101000010")
    assert AREAS[name](truth.astype(float), truth) == 1
    assert AREAS[name](np.zeros(10), truth) == pytest.approx(chance)


@pytest.mark.parametrize("figure", AREAS.values(), ids=AREAS)
@pytest.mark.parametrize("truth", ["000", "111"])
def test_a_truth_of_nothing_or_everything_has_no_area(figure: Callable[..., float], truth: str) -> None:
    scores = [1.0, 2.0, 2.0]
    assert np.isnan(figure(scores, mask(truth)))
    assert recovered_at_some_threshold(scores, mask(truth))
    assert np.isnan(acdc_auc([mask("010")], mask(truth)))
    assert np.isnan(mib_auroc([mask("010"), mask("111")], mask(truth)))
    curve = roc_curve(scores, mask(truth))
    assert np.isnan(curve.true_positive_rate).all() == (truth == "000")
    assert np.isnan(curve.false_positive_rate).all() == (truth == "111")


def test_a_source_is_as_good_as_its_best_edge() -> None:
    values = np.array([[0.0, 3.0, 0.0], [2.0, 1.0, 0.0]])  # [n_destinations, n_sources]
    assert node_scores(values).tolist() == [2, 3, 0]
    assert node_scores(values > 0).tolist() == [True, True, False]


# ---- circuits ---------------------------------------------------------------------------------------------------


@given(sweeps())
def test_every_edge_is_counted_once(sweep: tuple[list[np.ndarray], np.ndarray]) -> None:
    for kept in sweep[0]:
        truth = sweep[1]
        counts = confusion(kept, truth)
        numbers = (counts.true_positives, counts.false_positives, counts.missed, counts.true_negatives)
        pairs = list(zip(kept, truth, strict=True))
        assert numbers == tuple(
            pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
        )
        assert counts.hamming == int((kept != truth).sum())
        if counts.true_positives:
            assert counts.f1 == pytest.approx(2 / (1 / counts.precision + 1 / counts.recall))
        else:
            assert counts.f1 == 0


def test_figures_of_a_circuit_that_do_not_exist_are_nan() -> None:
    nothing_kept, nothing_true = confusion(mask("000"), mask("010")), confusion(mask("100"), mask("000"))
    assert np.isnan(nothing_kept.precision)
    assert (nothing_kept.recall, nothing_kept.f1) == (0, 0)
    assert np.isnan(nothing_true.recall)
    assert (nothing_true.precision, nothing_true.f1) == (0, 0)
    neither = confusion(mask("000"), mask("000"))
    assert np.isnan([neither.precision, neither.recall, neither.f1]).all()
    assert (neither.hamming, neither.true_negatives) == (0, 3)


# ---- protocols of other benchmarks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0),
        ([(2, 2)], 0.25),
        ([(1, 1)], 3 / 16),
        ([(1, 1), (2, 2)], 5 / 16),
        ([(3, 3), (1, 1)], (3 / 4 + 2 * 1 / 4) / 4),
        ([(0, 4)], 1),
        ([(1, 3), (2, 2)], 9 / 16),  # the second lies right of and below the first
        ([(1, 3), (1, 2)], 9 / 16),
    ],
)
def test_acdc_protocol_is_a_pessimistic_staircase(points: list[tuple[int, int]], expected: float) -> None:
    """Points in quarters: (false positives, true positives) of four false and four true edges."""
    truth = mask("11110000")
    kept = [mask("1" * y + "0" * (4 - y) + "1" * x + "0" * (4 - x)) for x, y in points]
    assert acdc_auc(kept, truth) == pytest.approx(expected)


@given(sweeps())
def test_acdc_protocol_takes_the_best_circuit_with_no_more_false_edges(
    sweep: tuple[list[np.ndarray], np.ndarray],
) -> None:
    kept, truth = sweep
    points = [(0.0, 0.0)] + [(k[~truth].mean(), k[truth].mean()) for k in kept]
    grid = np.arange((~truth).sum()) / (~truth).sum()  # between two of these nothing changes
    area = np.mean([max(y for x, y in points if x <= rate + 1e-9) for rate in grid])
    assert acdc_auc(kept, truth) == pytest.approx(area)
    assert acdc_auc(kept[::-1], truth) == acdc_auc(kept, truth)


def test_mib_protocol_adds_no_origin_and_stretches_to_the_last_circuit() -> None:
    truth = mask("11000000")
    kept = [mask("10100000"), mask("11110000"), mask("11111000")]  # (1/6, 1/2), (2/6, 1), (3/6, 1)
    assert mib_auroc(kept, truth) == pytest.approx((1 / 3) * 0.75 + (1 / 3) * 1)
    assert np.isnan(mib_auroc([mask("10000000"), truth], truth))


@given(rankings())
def test_mib_protocol_at_every_size_lacks_only_the_part_before_the_first(
    ranking: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, truth = ranking
    kept = [scores >= threshold for threshold in sorted(set(scores), reverse=True)]
    if len(kept) < 2:
        return
    first = confusion(kept[0], truth)
    before = first.false_positives / (~truth).sum() * first.recall / 2
    assert mib_auroc(kept, truth) + before == pytest.approx(roc_auc(scores, truth))


# ---- bad input --------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused() -> None:
    truth = mask("010")
    with pytest.raises(AcdcError, match=r"as many scores as truths, got \[2\] and \[3\]"):
        roc_auc([1.0, 2.0], truth)
    with pytest.raises(AcdcError, match="1 of 3 scores are NaN"):
        best_f1([1.0, np.nan, 2.0], truth)
    with pytest.raises(AcdcError, match=r"truth as a 1-D boolean array .* int64"):
        roc_auc([1.0, 2.0, 3.0], np.array([0, 1, 0]))
    with pytest.raises(AcdcError, match=r"1-D boolean array .* \[1, 3\]; take \[graph.valid\]"):
        confusion(truth[None], truth)
    with pytest.raises(AcdcError, match="of one length, got 2 and 3"):
        confusion(truth[:2], truth)
    with pytest.raises(AcdcError, match="at least two sizes, got 1"):
        mib_auroc([truth], truth)
