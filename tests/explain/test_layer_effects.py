"""Edits of layers: what they must leave alone, what they must replace, and how layers are told apart."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Classifier, Subject, build_explainer, explain, make_request
from ganscale.explain.errors import ExplainInputError, LayerError
from ganscale.explain.units import LayerAblation

LATENT, SIDE = 6, 14


class Blocks(nn.Module):
    """A hidden map to which one branch adds nothing and the other a little, then the picture."""

    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.start = nn.Linear(LATENT, 3 * 7 * 7)
            self.silent = nn.Conv2d(3, 3, 1)
            self.quiet = nn.Conv2d(3, 3, 1)
            self.picture = nn.ConvTranspose2d(3, 1, 4, stride=2, padding=1)
        with torch.no_grad():
            for parameter in self.silent.parameters():
                parameter.zero_()
            for parameter in self.quiet.parameters():
                parameter.mul_(0.01)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.start(z)).unflatten(1, (3, 7, 7))
        return torch.tanh(self.picture(x + self.silent(x) + self.quiet(x)))


def subject(generator: nn.Module | None = None) -> Subject:
    critic = toys.conv_critic()
    return Subject(
        name="blocks", fn=critic, module=critic, generator=generator or Blocks(), critic=critic, value_range=None
    )


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(4))


def test_ablating_a_layer_of_zeros_changes_nothing_and_a_weak_one_little():
    found = explain(subject(), latents(20), "layer-ablation")
    assert found.meta["layers"] == ["start", "silent", "quiet", "picture"]
    effect = found.values["effect_pixels"]  # [L, mean or zero]
    assert effect[1].tolist() == [0.0, 0.0]
    assert effect[2].max() < 0.1 * effect[0].min()
    assert not found.not_better_than_random
    assert torch.equal(found.values["layer_edited"][1], found.values["layer_plain"])


def test_taking_a_part_of_a_layer_away_is_between_nothing_and_all():
    whole, half = (
        explain(subject(), latents(8), "layer-ablation", amount=amount).values["effect_pixels"][3, 0]
        for amount in (1.0, 0.5)
    )
    assert 0 < half < whole


def test_the_curve_of_an_edit_starts_at_nothing_and_holds_the_whole_edit():
    for method, shares in (("layer-ablation", [0, 0.25, 0.5, 0.75, 1]), ("layer-noise", [0, 0.25, 0.5, 1, 2])):
        found = explain(subject(), latents(8), method, amount=0.8)
        assert found.values["curve_amounts"].tolist() == pytest.approx([0.8 * share for share in shares])
        curve = found.values["curve_pixels"]
        assert not curve[:, 0].any()
        assert torch.equal(curve[:, shares.index(1)], found.values["effect_pixels"][:, 0])


def test_a_single_latent_tells_nothing_of_the_spread():
    one, two = (explain(subject(), latents(count), "layer-noise").values["curve_error"] for count in (1, 2))
    assert one.isnan().all()
    assert two.isfinite().all()


def test_noise_in_a_linear_generator_moves_the_picture_in_proportion():
    linear = nn.Sequential(nn.Linear(LATENT, SIDE * SIDE), nn.Unflatten(1, (1, SIDE, SIDE)))
    found = explain(subject(linear), latents(8), "layer-noise")
    curve, amounts = found.values["curve_pixels"][0], found.values["curve_amounts"]
    assert torch.allclose(curve / curve[-1], amounts / amounts[-1], rtol=1e-5)  # float32 pictures


def test_the_mean_of_a_layer_over_the_prior_is_what_every_picture_gets_however_few_they_are():
    pair = subject()
    built = build_explainer(pair, make_request(LayerAblation, latents(6), options={"layers": "picture"}))
    found = explain(pair, latents(6), "layer-ablation", layers="picture").values["layer_edited"][0]
    before = []
    with torch.no_grad():
        handle = pair.generator.picture.register_forward_hook(lambda *call: before.append(call[2]))
        pair.generator(built.prior)
        handle.remove()
    torch.testing.assert_close(found, torch.tanh(before[0].mean(dim=0, keepdim=True)).expand(6, -1, -1, -1))
    one = explain(pair, latents(1), "layer-ablation", layers="picture").values["layer_edited"][0]
    torch.testing.assert_close(one, found[:1])
    assert float(built.prior.mean().abs()) < 0.2  # 64 x 6 normal numbers: 4 standard errors
    assert float(built.prior.std()) == pytest.approx(1, abs=0.2)


def test_noise_in_a_layer_grows_with_its_amount_and_leaves_no_trace():
    pair = subject()
    before = pair.generator(latents(4))
    small, large = (
        explain(pair, latents(12), "layer-noise", amount=amount).values["effect_pixels"] for amount in (0.1, 1.0)
    )
    assert small[1] == 0, "a silent layer has no deviation to be disturbed by"
    assert (large[[0, 2, 3]] > 2 * small[[0, 2, 3]]).all()
    assert torch.equal(pair.generator(latents(4)), before)


def test_swapping_a_whole_layer_of_a_chain_gives_the_other_picture():
    generator = toys.ConvGenerator(LATENT, SIDE)
    found = explain(subject(generator), latents(8), "layer-swap")
    assert found.meta["layers"] == ["start", "hidden"]
    assert found.values["share_whole"].tolist() == [1.0, 1.0]  # bit-equal pictures
    assert (found.values["share_mixed"] < 1).all()


def test_a_layer_of_one_channel_is_left_out_of_the_swaps_because_its_half_is_all_of_it():
    generator = toys.ConvGenerator(LATENT, SIDE)
    found = explain(subject(generator), latents(8), "layer-swap")
    assert found.meta["left_out"] == ["up"]
    assert any("up: left out" in words for words in found.meta["warnings"])
    with pytest.raises(ExplainInputError, match="2 channels or more"):
        explain(subject(generator), latents(8), "layer-swap", layers="up")
    assert "up" in explain(subject(generator), latents(8), "style-mixing").meta["layers"]


def test_a_layer_without_a_map_has_no_style_and_is_left_out_of_the_mixtures():
    generator = toys.ConvGenerator(LATENT, SIDE)
    found = explain(subject(generator), latents(8), "style-mixing")
    assert found.meta["left_out"] == ["start"]
    assert any("start: left out" in words for words in found.meta["warnings"])
    assert (found.values["share_mixed"] != 0).all(), "what nothing can happen to would make all others differ from it"
    with pytest.raises(ExplainInputError, match="have a map in a layer"):
        explain(subject(generator), latents(8), "style-mixing", layers="start")


def test_half_of_the_channels_of_an_additive_layer_give_half_of_the_picture():
    class Sum(nn.Module):
        latent = 8

        def __init__(self) -> None:
            super().__init__()
            self.keep = nn.Conv2d(8, 8, 1, groups=8, bias=False)
            with torch.no_grad():
                self.keep.weight.fill_(1)

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            # channel c draws row c: half of the channels are half of the rows
            return self.keep(z[:, :, None, None].expand(-1, -1, 1, 14)).transpose(1, 2)

    pair = Subject(name="sum", fn=lambda x: x.flatten(1).sum(1), generator=Sum(), value_range=None)
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).sign()
    z[1] = -z[0]  # so that each row is equally far from its partner's
    found = explain(pair, z, "layer-swap")
    torch.testing.assert_close(found.values["share_mixed"], torch.tensor([1 - 0.5**0.5]).double(), rtol=1e-6, atol=0)


def test_a_style_is_the_means_and_deviations_and_nothing_of_the_layout():
    from ganscale.explain.units.layer_swap import StyleMixing, _statistics

    mine, theirs = torch.randn(2, 3, 5, 7, 7, generator=torch.Generator().manual_seed(1))
    mixed = StyleMixing.mix(None, mine, theirs, None)
    for got, wanted in zip(_statistics(mixed), _statistics(theirs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    flat = (part.flatten(2) - part.flatten(2).mean(dim=2, keepdim=True) for part in (mixed, mine))
    assert torch.nn.functional.cosine_similarity(*flat, dim=2).min() >= 1 - 1e-5


def test_the_diagonal_of_the_mixing_matrix_is_the_sources_themselves():
    found = explain(subject(toys.ConvGenerator(LATENT, SIDE)), latents(5), "style-mixing").values
    assert found["mixing_matrix"].shape == (4, 4, 1, SIDE, SIDE)
    diagonal = found["mixing_matrix"][range(4), range(4)]
    torch.testing.assert_close(diagonal, found["mixing_sources"][:4], rtol=1e-4, atol=1e-5)


def test_what_layers_cannot_use_is_refused():
    with pytest.raises(LayerError, match="did you mean silent"):
        explain(subject(), latents(3), "layer-ablation", layers="start,silnt")
    for method in ("layer-swap", "style-mixing"):
        with pytest.raises(ExplainInputError, match="two latents or more"):
            explain(subject(), latents(1), method)


class OneFigureAUnit(nn.Module):
    """Four channels of ``hidden``, of which each draws its own quarter of the picture, the first the brightest."""

    latent = 4

    def __init__(self, *, apart: bool = True) -> None:
        super().__init__()
        self.hidden, self.draw = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1, bias=False)
        self.register_buffer("quarters", torch.zeros(4, 8, 8))
        for unit in range(4):
            rows, columns = (slice(4 * half, 4 * half + 4) for half in divmod(unit, 2))
            self.quarters[unit, rows, columns] = 1
        if not apart:
            self.quarters.fill_(1)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.diag(torch.tensor([4.0, 3, 2, 1]))[:, :, None, None])
            self.hidden.bias.fill_(1)
            self.draw.weight.fill_(1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(z.abs()[:, :, None, None]).clamp_min(0)
        return self.draw(hidden * self.quarters)


class Mean(nn.Module):
    """A classifier whose one feature is twice the mean of the picture."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x.flatten(1).mean(dim=1, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.features(x), -self.features(x)], dim=1)


def ablated(generator: nn.Module, count: int = 24, **options):
    classifier = Classifier(Mean(), name="mean", example=torch.zeros(2, 1, 8, 8))
    pair = Subject(
        name="units", fn=lambda x: x.flatten(1).sum(1), generator=generator, classifier=classifier, value_range=None
    )
    z = torch.randn(count, 4, generator=torch.Generator().manual_seed(6))
    return pair, z, explain(pair, z, "layer-ablation", layers="hidden", **options)


def test_units_that_vary_most_change_more_than_random_ones_and_each_its_own_part_of_the_picture():
    pair, z, found = ablated(OneFigureAUnit(), units=4)
    assert found.values["units"].tolist() == [[0, 1]], "at most half of the units, so that others are left to compare"
    assert sorted(found.values["units_of_chance"].flatten().tolist()) == [2, 3]
    effect, score = found.values["unit_effect_pixels"][0], found.scores["unit_effect"]
    built = build_explainer(pair, make_request(LayerAblation, z, options={"layers": "hidden"}))
    with torch.no_grad():
        value = 4 * z[:, 0].abs() + 1
        mean = (4 * built.prior[:, 0].abs() + 1).mean()
    truth = ((value - mean).abs() * (16 / 64) ** 0.5).mean()  # the unit draws a quarter of the pixels
    assert float(effect[0]) == pytest.approx(float(truth), rel=1e-5)  # float32 pictures
    assert score.value == pytest.approx(float(effect.mean()), rel=1e-6)
    assert score.n == len(z)
    assert score.beats_control
    specific = found.scores["unit_specificity"]
    assert specific.value == pytest.approx(1, abs=1e-6), "one quarter, the same each time"
    assert specific.control == pytest.approx(0, abs=1e-6), "where no other unit draws"


def test_units_that_all_draw_the_same_are_not_specific():
    _, _, found = ablated(OneFigureAUnit(apart=False), units=2)
    specific = found.scores["unit_specificity"]
    assert specific.value == pytest.approx(1, abs=1e-6)
    assert specific.control == pytest.approx(1, abs=1e-6)
    assert not specific.beats_control


def test_features_say_how_far_a_picture_went_in_parts_of_the_way_to_another():
    pair, z, found = ablated(OneFigureAUnit(), units=0)
    assert "unit_effect" not in found.scores
    built = build_explainer(pair, make_request(LayerAblation, z, options={"layers": "hidden"}))
    with torch.no_grad():
        own, prior = (pair.generator(rows).double().flatten(1).mean(dim=1) for rows in (z, built.prior))
    apart = (2 * prior.var()).sqrt()
    wanted = ((own - prior.mean()).abs() / apart).mean()
    assert float(found.values["effect_features"][0, 0]) == pytest.approx(float(wanted), rel=1e-4)  # float32 pictures
    assert torch.allclose(found.values["effect_features"][0, 1], (own / apart).mean(), rtol=1e-4)


def test_a_single_latent_has_effects_of_units_but_no_other_half_to_be_specific_on():
    _, _, found = ablated(OneFigureAUnit(), count=1, units=2)
    assert found.values["unit_effect_pixels"].isfinite().all()
    assert "unit_specificity" not in found.scores
    assert "unit_specificity" not in found.values
