"""Neighbours against a whole sort, membership of copied and of fresh samples, alignment of layers against its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.dashboards.explanation_parts import said_of_all
from ganscale.explain import Subject, explain
from ganscale.explain.base import parse_options
from ganscale.explain.beside import Beside
from ganscale.explain.errors import ExplainInputError, ExplainOptionError
from ganscale.explain.likeness.cka import Sums, debiased_of_orders
from ganscale.explain.likeness.conv_interaction import watched
from ganscale.explain.likeness.membership import Membership, auc, caught_at, roc
from ganscale.explain.likeness.retrieval import best_of, few_numbers, merge_best
from ganscale.explain.likeness.units_to_logit import score_of_units


def images(count: int, seed: int = 0, side: int = 14) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_neighbours_found_in_parts_are_those_of_one_sort_ties_too():
    distance = np.random.default_rng(0).integers(0, 4, (7, 60)).astype(float)  # full of ties
    whole = best_of(distance, 0, 9)
    parts = [best_of(distance[:, start : start + 13], start, 9) for start in range(0, 60, 13)]
    for merged in (merge_best(parts, 9), merge_best(parts[::-1], 9)):
        np.testing.assert_array_equal(merged[0], whole[0])
        np.testing.assert_array_equal(merged[1], whole[1])


def test_a_query_finds_its_own_copy_and_its_class():
    gallery = images(600)
    labels = torch.arange(600) % 3
    gallery[labels == 1] += 3
    gallery[labels == 2] -= 3
    critic = toys.conv_critic()
    subject = Subject(name="critic", fn=critic, module=critic, critic=critic, value_range=None)
    inputs = {"x": gallery[[3, 400, 599]], "labels": labels[[3, 400, 599]], "real": gallery, "real_labels": labels}
    found = explain(subject, inputs, "retrieval", k=3)
    for space in ("features", "pixels"):
        assert found.values[f"{space}_neighbours"][:, 0].tolist() == [3, 400, 599]
        assert (found.values[f"{space}_distance"][:, 0] == 0).all()
    assert found.meta["copies"] == 3
    assert found.scores["same_class"].value == 1
    assert found.scores["same_class"].control == pytest.approx(1 / 3, abs=0.01)
    assert torch.equal(found.values["neighbour_images"][:, 0], inputs["x"])
    with pytest.raises(ExplainInputError, match="gallery"):
        explain(subject, images(2), "retrieval")


def test_neighbours_are_those_of_scikit_learn_in_features_and_in_pixels():
    neighbours = toys.peer("sklearn.neighbors").NearestNeighbors(n_neighbors=5, algorithm="kd_tree")
    gallery, queries = images(600), images(9, seed=1)
    critic = toys.conv_critic()
    subject = Subject(name="critic", fn=critic, module=critic, critic=critic, value_range=None)
    found = explain(subject, {"x": queries, "real": gallery}, "retrieval", k=5).values
    before_last = critic[:-2]  # what the critic's only linear layer is given
    with torch.no_grad():
        spaces = {"pixels": (gallery, queries), "features": (before_last(gallery), before_last(queries))}
    for name, pair in spaces.items():
        known, asked = (rows.flatten(1).double().numpy() for rows in pair)
        distance, place = neighbours.fit(known).kneighbors(asked)
        np.testing.assert_array_equal(found[f"{name}_neighbours"], place)
        np.testing.assert_allclose(found[f"{name}_distance"], distance, rtol=1e-5)  # float32 features


class Copier(nn.Module):
    """Draws one of its training images, a little noisy: z names which."""

    def __init__(self, training: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", training)
        self.latent = 3

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        which = (z[:, 0].abs() * 1e4).long() % len(self.kept)
        return self.kept[which] + 0.05 * z[:, 1, None, None, None]


def membership(generator: nn.Module):
    inputs = {
        "x": images(1),
        "real": images(500, seed=1, side=6),
        "held_out": images(500, seed=2, side=6),
        "latents": torch.randn(2000, 3, generator=torch.Generator().manual_seed(3)),
    }
    return explain(Subject(name="g", fn=lambda x: x.flatten(1).sum(1), generator=generator), inputs, "membership")


def test_a_generator_that_returns_training_images_gives_them_away_and_one_that_does_not_does_not():
    copied = membership(Copier(images(500, seed=1, side=6)))
    assert copied.scores["nearest_auc"].value >= 0.95
    assert copied.verdict == "better"
    fresh = membership(Copier(images(2000, seed=9, side=6)))
    assert abs(fresh.scores["nearest_auc"].value - 0.5) <= 0.06  # the null's spread is .018
    assert abs(fresh.scores["nearest_auc"].control - 0.5) <= 0.08
    assert fresh.not_better_than_random
    assert "no sign of memorisation" in fresh.meta["banner"]
    said = said_of_all("not better", fresh.meta["banner"])
    assert "no sign of memorisation" in said
    assert "bad" not in said
    assert copied.scores["searched_auc"].value >= 0.9
    assert copied.scores["searched_auc"].n == 128
    started = copied.values["nearest_distance"][torch.cat([torch.arange(64), 500 + torch.arange(64)])]
    assert (copied.values["searched_distance"] <= started + 1e-4).all()
    near = copied.values["nearest_generated"] - copied.values["nearest_members"]
    assert float(near.abs().amax()) <= 0.05 * 4


def test_the_area_counts_ties_half_and_equals_the_share_of_ordered_pairs():
    positive, negative = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0])
    assert auc(positive, negative) == pytest.approx((0.0 + 1 + 0.5 + 1 + 0.5 + 1) / 6)
    assert auc(rows(50), rows(50) - 100) == 1
    assert caught_at(np.arange(100.0) + 0.5, np.arange(100.0), 0.01) == pytest.approx(0.02, abs=0.011)


def test_the_area_and_the_curve_are_those_of_scikit_learn_ties_too():
    metrics = toys.peer("sklearn.metrics")
    positive, negative = (np.random.default_rng(seed).integers(0, 30, 200 + seed).astype(float) for seed in (5, 6))
    positive += 2
    signal = np.concatenate([positive, negative])
    is_member = np.arange(len(signal)) < len(positive)
    assert auc(positive, negative) == pytest.approx(metrics.roc_auc_score(is_member, signal), abs=1e-12)
    alarms, hits, _ = metrics.roc_curve(is_member, signal, drop_intermediate=False)
    theirs_P2, curve_P2 = np.stack([alarms, hits], axis=1), roc(positive, negative)
    apart = np.abs(curve_P2[:, None] - theirs_P2[None]).max(axis=2)
    assert apart.min(axis=0).max() <= 1e-12, "each of their points is one of ours"
    assert apart.min(axis=1).max() <= 1e-12, "and each of ours one of theirs"


def test_alignment_is_one_for_itself_rotated_and_scaled_and_merged_sums_are_whole_ones():
    x = rows(200, 8)
    rotation = np.linalg.qr(rows(8, 8, seed=1))[0]
    layers = [x, 3 * x @ rotation + 5, rows(200, 4, seed=2)]
    whole = Sums.of_rows(layers)
    for found in (whole.alignment(), whole.debiased()):
        assert found[0, 1] == pytest.approx(1, abs=1e-10)
        np.testing.assert_allclose(np.diag(found), 1, atol=1e-12)
    parts = [Sums.of_rows([layer[start : start + 70] for layer in layers]) for start in range(0, 200, 70)]
    merged = parts[2] + parts[0] + parts[1]
    np.testing.assert_allclose(merged.debiased(), whole.debiased(), atol=1e-10)
    np.testing.assert_allclose(merged.alignment(), whole.alignment(), atol=1e-10)


def test_debiased_alignment_of_independent_features_is_near_nothing_where_the_plain_one_is_not():
    sums = Sums.of_rows([rows(2000, 32), rows(2000, 32, seed=1)])
    assert abs(sums.debiased()[0, 1]) <= 0.01
    assert sums.alignment()[0, 1] > 0.012  # 32 / 2000 = .016


def test_debiased_alignment_across_reordered_layers_is_that_of_the_sums_of_all_their_features():
    g, d = [rows(60, 5), 3 * rows(60, 7, seed=1) + 2], [rows(60, 4, seed=2) - 1, rows(60, 5), rows(60, 2, seed=3) * 0]
    orders = [np.arange(60), *(np.random.default_rng(seed).permutation(60) for seed in range(3))]
    whole = [Sums.of_rows([*g, *(layer[order] for layer in d)]).debiased()[:2, 2:] for order in orders]
    found = debiased_of_orders(g, d, orders)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-12)  # sums of 60 terms in float64, added in another order
    assert found[0, 0, 1] == pytest.approx(1, abs=1e-12)
    assert not found[:, :, 2].any(), "nothing is like a layer that does not vary"


@pytest.mark.parametrize("searched", [1, -1])
def test_a_search_whose_control_would_have_no_halves_is_refused_before_anything_is_computed(searched):
    with pytest.raises(ExplainOptionError, match=r"at least 2|equal to 0") as refused:
        parse_options(Membership, {"searched": searched})
    assert "\n" not in str(refused.value)
    assert [parse_options(Membership, {"searched": count}).searched for count in (0, 2)] == [0, 2]


def test_debiased_alignment_is_that_of_gram_matrices_without_their_diagonals():
    x, y, n = rows(30, 5), rows(30, 3, seed=1) + 1, 30

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        between = one @ k @ m @ one
        return np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 * between / (n - 2)

    kx, ky = x @ x.T, y @ y.T
    truth = hsic(kx, ky) / np.sqrt(hsic(kx, kx) * hsic(ky, ky))
    assert Sums.of_rows([x, y]).debiased()[0, 1] == pytest.approx(truth, rel=1e-9)


def test_layers_are_found_by_their_calls_and_the_gradient_at_the_last_is_that_of_the_critic():
    generator, critic = toys.ConvGenerator(6, 14), toys.conv_critic()
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    subject = Subject(name="pair", fn=critic, generator=generator, critic=critic, value_range=None)
    found = explain(subject, z, "conv-interaction")
    assert found.meta["layers_generator"] == ["hidden", "up"]  # start puts out 196 numbers: too wide a vector
    assert found.meta["layers_critic"] == ["0", "2", "5"]
    before = generator(z).detach().atanh().requires_grad_(True)  # what the last layer puts out
    (slope,) = torch.autograd.grad(critic(before.tanh()).sum(), before)
    truth = float(slope.double().flatten(1).square().sum(1).mean().sqrt())
    assert float(found.values["gradient_by_layer"][1]) == pytest.approx(truth, rel=1e-4)
    assert not found.not_better_than_random
    assert list(watched(critic, images(2))[1]) == ["0", "2", "5"]


class Wired(torch.nn.Module):
    """A generator whose channel 2 of ``hidden`` alone reaches the picture; the critic adds the picture up."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Conv2d(6, 4, 1)
        self.last = torch.nn.Conv2d(4, 1, 1, bias=False)
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.weight[0, 2] = -3.0

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.last(self.hidden(z[:, :, None, None].expand(-1, -1, 4, 4)))


def test_the_unit_that_alone_reaches_the_critic_carries_its_whole_logit():
    critic = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.Flatten(), torch.nn.Linear(16, 1))
    critic.append(torch.nn.Flatten(0))
    with torch.no_grad():
        for layer in (critic[0], critic[2]):
            layer.weight.fill_(1.0)
        critic[2].bias.zero_()
    generator = Wired()
    z = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    subject = Subject(name="pair", fn=critic, generator=generator, critic=critic, value_range=None)
    found = explain(subject, z, "conv-interaction")
    assert found.meta["layers_of_units"] == ["hidden"], "the last layer's channel is the picture, no unit"
    effect = dict(zip(found.values["units_0"].tolist(), found.values["units_logit_0"].tolist(), strict=True))
    truth = float(critic(generator(z)).detach().double().mean())  # nothing is left without it
    assert effect[2] == pytest.approx(truth, rel=1e-5)  # float32 networks
    assert [effect[unit] for unit in (0, 1, 3)] == [0.0, 0.0, 0.0]
    assert found.values["filters_g1"].flatten().tolist() == [-3.0]
    assert torch.equal(found.values["shown_image"], generator(z[:1])[0].detach())


def test_units_are_scored_on_latents_that_did_not_choose_them():
    rng = np.random.default_rng(0)
    effect = rng.normal(size=(40, 64))  # units that do nothing in the mean
    assert not score_of_units(effect, np.random.default_rng(1)).beats_control
    effect[7] += 2.0
    effect[8] -= 2.0
    found = score_of_units(effect, np.random.default_rng(1))
    assert found.beats_control
    assert found.value == pytest.approx(2 * 2.0 / 5, abs=0.2), "two of the five best move it by 2"


def test_a_map_of_features_has_each_image_once_and_keeps_who_is_near():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 400, generator=generator)
    features[30:] += 3.0 * torch.randn(400, generator=generator) / 20 * 400**0.5  # a second crowd, far from the first
    few = torch.from_numpy(few_numbers(features)).double()
    assert few.shape == (60, 32)
    apart = torch.cdist(few, few)
    assert float(apart[:30, :30].max()) < float(apart[:30, 30:].min()), "two crowds stay two"
    ratio = torch.pdist(few) ** 2 / torch.pdist(features.double()) ** 2
    assert float(ratio.mean()) == pytest.approx(1, abs=0.15)  # 60 images: far less spread than one pair's quarter
    assert (few_numbers(features[:, :8]) == features[:, :8].numpy()).all(), "few numbers stay as they are"


def test_layers_of_a_critic_that_looks_across_its_batch_are_those_of_each_row_beside_its_companions():
    class Spread(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.end = torch.nn.Conv2d(1, 3, 3), torch.nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.end((x - x.mean(dim=0)).mean(dim=(2, 3)))[:, 0]

    critic, companions, generator = Spread(), images(3), toys.ConvGenerator(6, 14)
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    _, seen = watched(Beside(critic, companions), generator(z))
    one_by_one = torch.cat([critic.conv(row) for row in generator(z).split(1)])
    torch.testing.assert_close(seen["conv"], one_by_one, rtol=0, atol=1e-6)  # float32, in batches of other sizes
    by_hand = [critic(torch.cat([row, companions]))[:1] for row in generator(z).split(1)]
    assert torch.allclose(seen["end"][:, 0], torch.cat(by_hand), atol=1e-6)  # float32
    beside = Beside(critic, companions)
    found = explain(
        Subject(name="pair", fn=beside, generator=generator, critic=beside, value_range=None), z, "conv-interaction"
    )
    assert found.meta["layers_critic"] == ["conv", "end"]
