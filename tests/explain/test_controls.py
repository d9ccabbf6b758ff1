"""The controls of a map: a network with shuffled weights, moved inputs, known masks; and what peers measure."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Subject, build_explainer, explain, make_request, subject_of_run
from ganscale.explain.faithfulness import pointing_game
from ganscale.explain.gradients import InputXGradient
from ganscale.explain.kernel_shap import KernelShap
from ganscale.explain.shuffling import shuffled_weights


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 1, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Normed(nn.Module):
    """A critic with both forms of spectral norm and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.utils.spectral_norm(nn.Linear(4 * 144, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).flatten(1)).squeeze(1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_whose_weights_were_shuffled_comes_back_bit_for_bit(images, fails):
    torch.manual_seed(3)
    network = Normed().eval()
    before, state = network(images), {name: t.clone() for name, t in network.state_dict().items()}
    values = [p.detach().flatten().sort().values for p in network.parameters()]
    try:
        with shuffled_weights(network, seed=4):
            inside = network(images)
            kept = [p.detach().flatten().sort().values for p in network.parameters()]
            if fails:
                raise ArithmeticError
    except ArithmeticError:
        assert fails
    assert all(torch.equal(one, other) for one, other in zip(values, kept, strict=True))  # the same weights, elsewhere
    assert not torch.allclose(inside, before)
    assert torch.equal(network(images), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_shuffled_matrices_keep_a_spectral_norm_of_one(images):
    torch.manual_seed(3)
    network = Normed().eval()
    with shuffled_weights(network, seed=4):
        network(images)
        first = network.first.weight.detach().flatten(1)
        last = network.last.weight.detach()
    for weight in (first, last):
        assert float(torch.linalg.matrix_norm(weight, ord=2)) == pytest.approx(1, abs=0.02)


def test_the_map_of_a_shuffled_network_has_nothing_to_do_with_the_trained_ones():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(256, 1, 14, 14, generator=generator) * 2 - 1
    network = toys.conv_critic()
    target = (x[:, 0, 2:7, 2:7].mean(dim=(1, 2)) - x[:, 0, 8:12, 8:12].mean(dim=(1, 2))) * 3
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):  # learns where to look
        optimizer.zero_grad()
        (network(x) - target).square().mean().backward()
        optimizer.step()
    explainer = build_explainer(
        Subject(name="net", fn=network, module=network),
        make_request(InputXGradient, x[:8], options={"shakes": 0, "baseline": 0}),
    )
    chunks = explainer.plan()
    partials = [explainer.run(chunk) for chunk in chunks]
    done = partials[0]
    for partial in partials[1:]:
        done = explainer.merge(done, partial)
    own, other = explainer.maps_of(done), explainer.maps_of(done, 0)
    correlation = np.corrcoef(own.weights_NM.ravel(), other.weights_NM.ravel())[0, 1]
    assert abs(correlation) <= 0.3
    found = explain(network, x[:8], "input-x-gradient", baseline=0)
    assert found.scores["deletion_auc_v_shuffled_network"].beats_control


@pytest.mark.parametrize("target", ["region:4,4,12,12", "unit:G.hidden:1", "critic@G"])
def test_the_control_of_a_map_of_latents_shuffles_the_generator(target):
    pair = subject_of_run(target=target, critic=toys.conv_critic(), generator=toys.ConvGenerator(12, 14))
    z = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    score = explain(pair, z, "input-x-gradient", baseline="zero").scores["deletion_auc_v_shuffled_network"]
    assert score.value < score.control, "no map is compared with itself"


def test_a_function_without_weights_has_no_shuffled_control(images):
    found = explain(lambda x: x.flatten(1).sum(1), images, "kernel-shap", cells=2)
    assert "deletion_auc_v_shuffled_network" not in found.scores
    assert "max_sensitivity" in found.scores


def test_the_gradient_of_a_linear_model_does_not_move_with_its_input(images):
    weight = torch.randn(1, 14, 14, generator=torch.Generator().manual_seed(2))
    score = explain(toys.Linear(weight), images, "saliency").scores["max_sensitivity"]
    assert score.value <= 1e-6
    assert score.control > 0.5


def test_a_map_that_is_empty_until_its_input_moves_has_moved_by_its_whole_size():
    x = torch.full((2, 1, 4, 4), -1.0)  # its own baseline: nothing to share out
    found = explain(lambda rows: rows.flatten(1).sum(1), x, "input-x-gradient")
    assert found.scores["max_sensitivity"].value == pytest.approx(1)


def test_moved_inputs_stay_in_the_range_and_near(images):
    explainer = build_explainer(
        Subject(name="f", fn=toys.Linear(torch.ones(1, 14, 14))),
        make_request(KernelShap, images, options={"shakes": 3}),
    )
    for number in range(3):
        moved = explainer.twin(number).x
        assert moved.abs().max() <= 1
        assert 0 < (moved - images).abs().max() <= 0.04  # 2 % of a width of 2
    assert not torch.equal(explainer.twin(0).x, explainer.twin(1).x)


def test_the_pointing_game_counts_the_largest_values_inside_the_masks():
    maps, mask = torch.zeros(4, 2, 6, 6), torch.zeros(4, 6, 6, dtype=torch.bool)
    mask[:, :3, :3] = True
    for sample, place in enumerate(((1, 1), (2, 2), (0, 0), (5, 5))):
        maps[sample, :, place[0], place[1]] = 1.0
    score = pointing_game(maps, mask)
    assert (score.value, score.control, score.n) == (0.75, 0.25, 4)
    assert score.low == pytest.approx(0.75 - 1.96 * (4 * 0.1875) ** 0.5 / 4)


def test_a_map_is_pointed_at_where_masks_come_with_the_samples(images):
    mask = torch.zeros(6, 14, 14, dtype=torch.bool)
    mask[:, 4:8, 4:8] = True

    def inside(x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 4:8, 4:8].sum(dim=(1, 2))

    found = explain(inside, {"x": images, "mask": mask}, "integrated-gradients")
    assert found.scores["pointing_game"].value == 1
    assert found.scores["pointing_game"].beats_control


def test_infidelity_equals_captums_with_the_same_perturbations(images):
    metrics = toys.peer("captum.metrics")
    from ganscale.explain import scores
    from ganscale.explain.cells import compose

    critic = toys.conv_critic().eval()
    found = explain(critic, images, "integrated-gradients", steps=50, cells=3, shakes=0, shuffled_network=False)
    x, baseline, segments = images[:1], found.inputs["baseline"][:1], found.inputs["segments"]
    removed = np.random.default_rng(0).random((64, 9)) < 0.5
    rows = compose(x[0], baseline[0], ~removed, segments)
    with torch.no_grad():
        drop_n = (critic(x) - critic(rows)).double().numpy()
    ours = scores.infidelity(found.values["segment_weights"][0].numpy(), removed, drop_n) * np.mean(drop_n**2)

    def perturb(inputs: torch.Tensor, baselines: torch.Tensor = None) -> tuple[torch.Tensor, torch.Tensor]:
        step = inputs - rows  # captum compares (perturbation x map) with the drop
        return (step != 0).float() * 1.0, rows

    theirs = metrics.infidelity(
        critic, perturb, x, found.values["attribution"][:1], n_perturb_samples=64, max_examples_per_batch=64
    )
    assert float(theirs) == pytest.approx(ours, rel=1e-5)  # of 1.9e-4: 2e-7 measured, float32 sums


def test_quantus_finds_our_integrated_gradients_more_faithful_and_steadier_than_a_random_map():
    quantus = toys.peer("quantus")
    generator = torch.Generator().manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 6, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 25, 3)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    x = torch.rand(8, 1, 14, 14, generator=generator) * 2 - 1
    y = network(x).argmax(dim=1)

    def ours(model=None, inputs=None, targets=None, **_) -> np.ndarray:
        rows = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).clamp(-1, 1)
        chosen = torch.as_tensor(np.asarray(targets))
        found = []
        for row, k in zip(rows, chosen, strict=True):
            fn = lambda r, k=int(k): network(r)[:, k]  # noqa: E731
            options = {"steps": 20, "shakes": 0, "shuffled_network": False, "baseline": "zero", "cells": 2}
            found.append(explain(fn, row[None], "integrated-gradients", **options).values["attribution"][0])
        return torch.stack(found).numpy()

    def chance(model=None, inputs=None, targets=None, **_) -> np.ndarray:
        return np.random.default_rng(crc32(np.asarray(inputs).tobytes())).standard_normal(inputs.shape)

    shared = {"disable_warnings": True, "return_aggregate": True, "aggregate_func": np.mean}
    faithful = quantus.FaithfulnessCorrelation(
        nr_runs=40,
        subset_size=28,
        perturb_baseline=0.0,
        similarity_func=quantus.similarity_func.correlation_pearson,
        **shared,
    )
    steady = quantus.MaxSensitivity(nr_samples=3, lower_bound=0.1, **shared)
    found = {}
    for name, explainer in (("ours", ours), ("chance", chance)):
        batch = {"x_batch": x.numpy(), "y_batch": y.numpy(), "a_batch": explainer(None, x.numpy(), y.numpy())}
        np.random.seed(0)  # noqa: NPY002 - the stream that quantus draws from
        found[name] = [
            float(np.asarray(metric(model=network, **batch, explain_func=explainer, device="cpu")).mean())
            for metric in (faithful, steady)
        ]
    assert found["ours"][0] >= found["chance"][0] + 0.3
    assert found["ours"][1] < found["chance"][1]
