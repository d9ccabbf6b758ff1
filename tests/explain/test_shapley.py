"""KernelSHAP and exact Shapley against the definition, the axioms, all rows at once, and peers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys

from ganscale.explain import build_explainer, explain, make_request
from ganscale.explain.coalitions import all_coalitions, border_coalitions, draw_coalitions
from ganscale.explain.errors import ExplainInputError, ExplainOptionError
from ganscale.explain.kernel_shap import KernelShap
from ganscale.explain.subject import Subject


def sample(players: int, *, seed: int = 0) -> torch.Tensor:
    x = torch.randn(1, players, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1.5
    x[0, 1] = x[0, 0]  # the symmetric players get equal inputs
    return x


def weights(*args, **options) -> np.ndarray:
    return explain(*args, **options).values["segment_weights"].numpy()


def test_kernel_shap_of_a_linear_model_is_exact_from_4_m_coalitions():
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(16, generator=torch.Generator().manual_seed(2))
    for seed in range(5):
        found = weights(toys.Linear(weight, 0.3), x, method="kernel-shap", num_coalitions=64, seed=seed)
        np.testing.assert_allclose(found, (weight * x).double().numpy(), atol=1e-5)


def test_enumeration_switches_on_by_itself_exactly_where_the_budget_allows_it():
    x = sample(8)
    assert explain(toys.Game(8), x, "kernel-shap", num_coalitions=254).meta["enumerated"]
    assert not explain(toys.Game(8), x, "kernel-shap", num_coalitions=253).meta["enumerated"]


@pytest.mark.parametrize("method", ["kernel-shap", "exact-shapley"])
def test_all_coalitions_give_the_shapley_values(method):
    game, x = toys.Game(8), sample(8)
    found = explain(game, x, method)
    phi = found.values["segment_weights"].numpy()[0]
    np.testing.assert_allclose(
        phi, toys.shapley_by_definition(game, x[0], torch.zeros(8, dtype=torch.float64)), atol=1e-6
    )
    assert abs(phi.sum() - float(game(x)[0] - game(0 * x)[0])) <= 1e-6
    assert abs(phi[-1]) <= 1e-6  # the dummy
    assert abs(phi[0] - phi[1]) <= 1e-6  # the symmetric pair
    assert abs(phi).max() > 0.1
    assert found.scores["completeness_gap"].value <= 1e-6


def test_sampled_kernel_shap_is_near_the_truth_and_pairs_help():
    game, x = toys.Game(12, seed=3), sample(12)
    truth = weights(game, x, method="exact-shapley")
    scale = np.abs(truth).max()

    def errors(paired: bool) -> list[float]:
        runs = (weights(game, x, method="kernel-shap", paired=paired, seed=seed, shakes=0) for seed in range(20))
        return [float(np.abs(found - truth).max() / scale) for found in runs]

    paired, unpaired = errors(True), errors(False)
    assert max(paired) <= 0.06  # n = 1024 of 4094 coalitions, worst of 20 seeds
    assert np.mean(paired) < np.mean(unpaired)


def test_the_standard_errors_are_those_of_repeated_runs():
    game, x = toys.Game(12, seed=3), sample(12)
    runs = [explain(game, x, "kernel-shap", seed=seed, shakes=0).values for seed in range(30)]
    spread = torch.stack([values["segment_weights"][0] for values in runs]).std(dim=0)
    claimed = torch.stack([values["segment_errors"][0] for values in runs]).mean(dim=0)
    # a jackknife over 9 chunks is known to some 25 %, a spread over 30 runs to 13 %
    assert 0.5 <= float(claimed.norm() / spread.norm()) <= 2.0


def test_weights_and_r_squared_from_merged_statistics_are_those_of_all_rows():
    game, x = toys.Game(12, seed=3), sample(12)
    request = make_request(KernelShap, x, seed=5, options={"shakes": 0})
    explainer = build_explainer(Subject(name="game", fn=game, value_range=None), request)
    chunks = explainer.plan()
    partial = toys.folded(explainer, chunks)
    maps = explainer.collect(partial)

    rows = [explainer.coalitions(chunk) for chunk in chunks]
    present, weight = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
    y = game(torch.from_numpy(present) * x).numpy()
    empty, change = float(game(0 * x)[0]), float(game(x)[0] - game(0 * x)[0])
    # the constraint put in by hand: the last weight is what the others leave over
    reduced = present[:, :-1].astype(float) - present[:, -1:]
    root = np.sqrt(weight)
    free, *_ = np.linalg.lstsq(reduced * root[:, None], (y - empty - present[:, -1] * change) * root, rcond=None)
    phi = np.append(free, change - free.sum())
    np.testing.assert_allclose(maps.weights_NM[0], phi, atol=1e-10)
    residual = y - empty - present @ phi
    truth = 1 - (weight * residual**2).sum() / (weight * (y - np.average(y, weights=weight)) ** 2).sum()
    assert abs(maps.scores["r_squared"].value - truth) <= 1e-10


def test_enumerated_kernel_weights_sum_to_the_harmonic_total():
    present, weight = all_coalitions(6, 0, 62)
    assert len(np.unique(present, axis=0)) == 62
    # sum over sizes s of (M - 1) / (s (M - s)), the number of coalitions of a size cancelling
    assert weight.sum() == pytest.approx(sum(5 / (s * (6 - s)) for s in range(1, 6)), abs=1e-12)


def test_the_border_coalitions_and_their_weights_are_those_of_the_full_list():
    border, border_weight = border_coalitions(6, 0, 12)
    present, weight = all_coalitions(6, 0, 62)
    wanted = np.isin(present.sum(axis=1), (1, 5))
    assert {tuple(row) for row in border} == {tuple(row) for row in present[wanted]}
    np.testing.assert_allclose(border_weight, weight[wanted], rtol=1e-14)


@pytest.mark.parametrize("players", [8, 9, 16])
def test_the_least_budget_never_gives_a_singular_fit(players):
    game, x = toys.Game(players), sample(players)
    for seed in range(20):
        found = explain(game, x, "kernel-shap", num_coalitions=4 * players, seed=seed)
        assert not found.meta["enumerated"]
        assert found.values["segment_errors"].isfinite().all()


@pytest.mark.parametrize("paired", [True, False])
def test_drawn_coalitions_follow_the_shapley_kernel(paired):
    rng = np.random.default_rng(0)
    drawn = np.concatenate([draw_coalitions(10, 126, paired=paired, rng=rng) for _ in range(200)])
    mass = 1 / (np.arange(2, 9) * (10 - np.arange(2, 9)))
    share = np.bincount(drawn.sum(axis=1), minlength=11)[2:9] / len(drawn)
    np.testing.assert_allclose(share, mass / mass.sum(), atol=0.01)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.015)  # 25,200 rows: three standard errors


def test_regions_of_an_image_share_out_what_their_pixels_carry():
    x = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(1)) * 2 - 1
    weight = torch.randn(3, 9, 11, generator=torch.Generator().manual_seed(2))
    found = explain(toys.Linear(weight), x, "kernel-shap", cells=3)
    segments = found.inputs["segments"]
    truth = torch.stack([(weight * (x + 1))[:, :, segments == cell].sum(dim=(1, 2)) for cell in range(9)], dim=1)
    torch.testing.assert_close(found.values["segment_weights"].float(), truth, atol=1e-4, rtol=0)  # float32 sums
    torch.testing.assert_close(found.values["attribution"].sum(dim=(1, 2, 3)), truth.sum(dim=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["kernel-shap", "exact-shapley", "integrated-gradients"])
def test_the_coordinates_of_points_are_players_of_their_own(method):
    x = torch.tensor([[3.0, -5.0], [0.5, 40.0]]).reshape(2, 2, 1, 1)
    weight = torch.tensor([2.0, -1.0]).reshape(2, 1, 1)
    found = explain(toys.Linear(weight), x, method)
    torch.testing.assert_close(found.values["attribution"], weight * x, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values["segment_weights"].float(), (weight * x).flatten(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["kernel-shap", "exact-shapley"])
def test_all_coalitions_equal_shap_exact_and_shap_kernel(method):
    shap = toys.peer("shap")
    game, x = toys.Game(8), sample(8)
    ours = weights(game, x, method=method)

    def on_numpy(rows: np.ndarray) -> np.ndarray:
        return game(torch.from_numpy(np.asarray(rows, dtype=np.float64))).numpy()

    background = np.zeros((1, 8))

    def hide(mask: np.ndarray, row: np.ndarray) -> np.ndarray:
        return (row * mask)[None]

    exact = shap.explainers.Exact(on_numpy, hide)(x.numpy()).values
    kernel = shap.KernelExplainer(on_numpy, background).shap_values(x.numpy(), nsamples=254, l1_reg=0, silent=True)
    np.testing.assert_allclose(ours, exact, atol=1e-6)
    np.testing.assert_allclose(ours, np.asarray(kernel).reshape(1, 8), atol=1e-6)


def test_kernel_shap_equals_captum_shapley_values():
    captum = toys.peer("captum.attr")
    game, x = toys.Game(5), sample(5)
    theirs = captum.ShapleyValues(game).attribute(x, baselines=0.0, perturbations_per_eval=32)
    np.testing.assert_allclose(weights(game, x, method="kernel-shap"), theirs.numpy(), atol=1e-4)


def test_too_few_coalitions_and_too_many_players_are_refused():
    x = torch.zeros(1, 16) + torch.arange(16.0)
    with pytest.raises(ExplainOptionError, match="num_coalitions=64"):
        explain(toys.Linear(torch.ones(16)), x, "kernel-shap", num_coalitions=63)
    with pytest.raises(ExplainInputError, match="at most 12"):
        explain(toys.Linear(torch.ones(16)), x, "exact-shapley")
