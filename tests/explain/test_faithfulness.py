"""The scores themselves: known values, and that they tell a true map from a random one."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
import toys

from ganscale.dashboards.layout import verdict
from ganscale.explain import Score, explain
from ganscale.explain import scores as measured
from ganscale.explain.anytime import drive
from ganscale.explain.attribution import AttributionExplainer
from ganscale.explain.base import make_request
from ganscale.explain.integrated_gradients import IntegratedGradients
from ganscale.explain.subject import Subject
from ganscale.explain.types import FUNCTION, Explanation


def test_the_true_order_of_an_additive_model_has_the_least_deletion_area_of_all_720():
    weight = torch.tensor([3.0, -1.0, 0.5, 2.0, -2.5, 1.0])
    x = torch.ones(1, 6)
    found = explain(toys.Linear(weight), x, "kernel-shap")
    counts = np.arange(7)
    areas = []
    for order in permutations(range(6)):
        masks = measured.deletion_masks(np.array(order), counts)
        areas.append(float(measured.area(masks @ weight.double().numpy(), counts)))
    assert len(areas) == 720
    assert found.scores["deletion_auc"].value == pytest.approx(min(areas), abs=1e-6)
    assert found.scores["insertion_auc"].value == pytest.approx(max(areas), abs=1e-6)


def test_infidelity_of_the_true_account_of_a_linear_model_is_zero_and_of_an_empty_one_is_one():
    weight = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert explain(toys.Linear(weight), x, "exact-shapley").scores["infidelity"].value <= 1e-10
    removed = np.random.default_rng(0).random((64, 12)) < 0.5
    drop = removed @ weight.numpy()
    assert measured.infidelity(np.zeros(12), removed, drop) == 1.0


def test_gini_is_zero_for_even_weights_and_near_one_for_a_single_player():
    weights = np.stack([np.ones(50), np.eye(50)[3], np.zeros(50)])
    np.testing.assert_allclose(measured.gini(weights), [0, 0.98, 0], atol=1e-12)


@pytest.mark.parametrize(("players", "points"), [(49, 16), (6, 16), (9, 4), (64, 10)])
def test_curves_begin_whole_end_empty_and_read_the_same_backwards(players: int, points: int):
    counts = measured.removal_counts(players, points)
    assert counts[0] == 0
    assert counts[-1] == players
    np.testing.assert_array_equal(counts, players - counts[::-1])
    assert len(counts) <= points + 2 or len(counts) == players + 1


def test_deleting_in_an_order_keeps_what_inserting_in_its_reverse_has_put_in():
    order, counts = np.random.default_rng(0).permutation(7), np.arange(8)
    kept = measured.deletion_masks(order, counts)
    assert kept.sum(axis=1).tolist() == list(range(7, -1, -1))
    put_in = ~measured.deletion_masks(order[::-1], counts)
    np.testing.assert_array_equal(kept, put_in[::-1])


class Imposter(IntegratedGradients):
    """Gives maps that have nothing to do with the function."""

    name = "imposter"

    def _integrate(self, x, baseline, steps, meter):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(int(x.sum() * 1e4)))


@pytest.mark.parametrize("count", [1, 8])
def test_a_random_map_is_not_better_than_random_and_a_true_one_is(count: int):
    x = torch.rand(count, 1, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1
    critic = toys.conv_critic()
    subject = Subject(name="critic", fn=critic, module=critic)
    assert drive(Imposter(subject, make_request(Imposter, x))).not_better_than_random
    assert not explain(subject, x, "integrated-gradients").not_better_than_random
    assert not explain(subject, x, "kernel-shap").not_better_than_random


def test_chance_alone_beats_its_control_rarely():
    rng = np.random.default_rng(0)
    beaten = 0
    for _ in range(2000):
        score = measured.against_random(rng.standard_normal(3), rng.standard_normal((3, 20)), better="lower")
        beaten += score.beats_control
    # one side of a 95 % interval is 2.5 %; a spread estimated from 3 x 20 draws makes it a little more
    assert 0.01 <= beaten / 2000 <= 0.045


def test_a_score_beats_its_control_only_with_its_whole_interval():
    def score(better: str, *, low: float | None = 1.0, high: float | None = 3.0, control: float = 0.0) -> bool:
        return Score(value=2.0, low=low, high=high, control=control, n=1, better=better).beats_control

    assert score("higher", control=0.5)
    assert not score("higher", control=1.5)
    assert score("lower", control=3.5)
    assert not score("lower", control=2.5)
    assert score("zero", control=-4.0)
    assert not score("zero", control=2.5)
    assert not score("lower", low=None, high=None, control=2.5)
    assert not score("higher", control=float("nan"))


def test_a_difference_without_a_margin_is_neither_better_nor_a_reason_for_the_banner_unless_it_is_worse():
    def bare(value: float, control: float = 0.349) -> Score:
        return Score(value=value, control=control, n=1, better="higher")

    assert (bare(0.353).verdict, bare(0.349).verdict, bare(0.1).verdict) == ("no margin", "not better", "not better")
    clear = Score(value=2.0, low=1.0, high=3.0, control=0.0, n=9, better="higher")
    for scores, expected in (
        ([bare(0.353)], "no margin"),
        ([bare(0.353), clear], "better"),
        ([bare(0.1), clear], "not better"),
    ):
        named = {str(place): score for place, score in enumerate(scores)}
        found = Explanation(method="m", target=FUNCTION, values={}, inputs={}, scores=named, meta={})
        assert (found.verdict, found.not_better_than_random) == (expected, expected == "not better")


def test_a_fit_worse_than_a_constant_beats_nothing_however_bad_its_control_is():
    def fit(value: float) -> Score:
        return Score(value=value, low=value - 0.1, high=value + 0.1, control=-0.9, n=3, better="higher", constant=0.0)

    assert (fit(-0.32).verdict, fit(0.05).verdict, fit(0.3).verdict) == ("not better", "not better", "better")
    assert verdict(fit(-0.32)) == "not better than a constant"
    x = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    found = explain(lambda rows: rows.sum(dim=1), x, "kernel-shap").scores
    assert (found["r_squared"].constant, found["infidelity"].constant) == (0, 1)
    assert found["infidelity"].margin is not None


def test_a_constant_function_has_nothing_to_explain_and_says_so():
    x = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    found = explain(lambda rows: rows.sum(dim=1) * 0 + 2.5, x, "kernel-shap")
    assert found.not_better_than_random
    assert np.isnan(found.scores["r_squared"].value)
    assert any("nothing to explain" in words for words in found.meta["warnings"])
    assert AttributionExplainer.primary == ("deletion_auc", "insertion_auc")


def test_a_map_whose_sizes_predict_nothing_says_so():
    def parity(x_NCHW: torch.Tensor) -> torch.Tensor:  # a product of signs: no part has a share of its own
        return torch.sign(x_NCHW.flatten(1) + 0.5).prod(dim=1)

    x = torch.ones(1, 1, 4, 4)
    found = explain(parity, x, method="kernel-shap", cells=4, num_coalitions=200)
    assert any("R² is below 0" in words for words in found.meta["warnings"])
    assert len(repr(found)) < 1000
