"""Generators and critics that take or tell labels: drawn figures whose classes are known, and toys with two heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_explain_invariance as invariance
import torch
import toys
from test_class_methods import SIDE, Matches, figures
from torch import nn

from ganscale.data.shapes import KINDS
from ganscale.explain import Classifier, OneLabel, Subject, build_explainer, drive, explain, subject_of_run
from ganscale.explain.errors import CallableError, ExplainInputError, ExplainOptionError, ExplainTargetError
from ganscale.explain.labels import Labelled

LATENT, CLASSES = 6, len(KINDS)


class DrawsItsLabel(nn.Module):
    """G(z, y): the figure of class ``order[y]``, as bright as the first latent says."""

    latent, classes = LATENT, CLASSES

    def __init__(self, order: list[int] | None = None) -> None:
        super().__init__()
        self.register_buffer("figures", figures()[order or list(range(CLASSES))])
        self.bright = nn.Linear(LATENT, 1, bias=False)
        with torch.no_grad():
            self.bright.weight.copy_(torch.eye(1, LATENT))

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bright = 0.7 + 0.3 * torch.tanh(self.bright(z))[:, :, None, None]
        return (self.figures[y] + 1) / 2 * bright * 2 - 1


class TwoHeads(nn.Module):
    """An auxiliary classifier's critic: real or fake, and which class."""

    classes = 3

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.real, self.kind = nn.Linear(SIDE * SIDE, 1), nn.Linear(SIDE * SIDE, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.real(x.flatten(1)), self.kind(x.flatten(1))


class Undeclared(TwoHeads):
    """The same without saying so."""

    classes = None


class NeedsLabel(nn.Module):
    """D(x, y)."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).mean(dim=1) * (1 + y)


class Level(nn.Module):
    """G(z, y): a picture of 4x4, a tenth of the first latent bright around its label's level, which are one apart."""

    latent, classes = LATENT, 3

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - 1 + 0.1 * z[:, 0])[:, None, None, None].expand(-1, 1, 4, 4)


def level_pair() -> tuple[Subject, dict[str, torch.Tensor]]:
    """Return the subject of levels under a critic that tells how bright, and latents of the middle one."""

    def critic(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).mean(dim=1)

    pair = Subject(name="level", fn=critic, generator=Level(), critic=critic, value_range=None)
    return pair, {"z": latents(24), "labels": torch.ones(24, dtype=torch.int64)}


def subject(generator: nn.Module | None = None) -> Subject:
    model = Matches()
    classifier = Classifier(model, name="matches", example=figures()[:2], labels=KINDS)
    return Subject(name="kinds", fn=model, generator=generator or DrawsItsLabel(), classifier=classifier)


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(1))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_a_generator_that_takes_labels_draws_each_class_itself():
    found = explain(subject(), latents(2), "class-generation", candidates=32)
    assert (found.meta["way"], found.meta["primary"]) == ("draw", ["hit_rate"])
    assert found.values["hits"].min() >= 0.95
    assert found.scores["hit_rate"].control == pytest.approx(1 / CLASSES, abs=0.1)  # 128 draws: 2.6 standard errors
    drawn = found.values["class_latents"]
    assert (drawn[..., LATENT:].argmax(dim=2) == torch.arange(CLASSES)[:, None]).all()
    assert found.meta["label_numbers"] == CLASSES


def test_a_generator_that_draws_another_class_than_its_label_is_found_out_though_a_search_would_find_the_class():
    swapped = subject(DrawsItsLabel([1, 0, 2, 3]))
    found = explain(swapped, latents(2), "class-generation")
    assert found.values["hits"].tolist() == [0.0, 0.0, 1.0, 1.0]
    searched = explain(swapped, latents(2), "class-generation", way="search", steps=3)
    assert searched.values["hits"].min() >= 0.95


def test_the_label_is_what_a_probed_image_is_meant_to_be():
    found = explain(subject(), latents(6), "probe-classifier", draws=300)
    matrix = found.values["probe_matrix"].double()
    assert matrix.sum() == 300
    assert (matrix.diagonal() / matrix.sum(dim=1)).min() >= 0.95
    assert found.scores["agreement"].value >= 0.95
    assert found.scores["agreement"].control == pytest.approx(1 / CLASSES, abs=0.05)
    assert found.meta["meant_by"] == "label that the generator was given"
    swapped = explain(subject(DrawsItsLabel([1, 0, 2, 3])), latents(6), "probe-classifier", draws=300)
    matrix = swapped.values["probe_matrix"].double()
    assert (matrix / matrix.sum(dim=1, keepdim=True))[[0, 1], [1, 0]].min() >= 0.95


def test_a_way_between_two_labels_begins_with_one_and_ends_with_the_other():
    labels = torch.arange(8) % CLASSES
    found = explain(subject(), {"z": latents(8), "labels": labels}, "probe-classifier", draws=64, points=6).values
    assert torch.equal(found["way_ends"], torch.stack([labels, labels.roll(-1)], dim=1))
    own = found["way_probability"] > 0.5  # [W, which end, T]
    assert own[:, 0].tolist() == [[True] * 3 + [False] * 3] * 8
    assert own[:, 1].tolist() == [[False] * 3 + [True] * 3] * 8


def test_labels_are_drawn_by_the_seed_kept_while_a_latent_moves_and_taken_where_they_are_given():
    generator = DrawsItsLabel()
    pair = replace(subject(generator), critic=toys.Linear(torch.ones(1, SIDE, SIDE)), value_range=None)
    options = {"judge": "critic", "steps": 20, "confidence": 0.5}
    found, again, other = (
        explain(pair, latents(24), "latent-counterfactual", seed=seed, **options) for seed in (3, 3, 4)
    )
    z = found.inputs["z"]
    assert torch.equal(z[:, :LATENT], latents(24))
    assert torch.equal(z, again.inputs["z"])
    assert not torch.equal(z, other.inputs["z"])
    assert len(set(z[:, LATENT:].argmax(dim=1).tolist())) == CLASSES  # 24 draws miss one of four in 1 of 250 seeds
    assert not found.values["step"][:, LATENT:].any(), "a label is no way to turn a decision round"
    few = explain(pair, latents(24)[:5], "latent-counterfactual", seed=3, **options)
    assert torch.equal(few.inputs["z"], z[:5]), "fewer latents have the labels that they had"
    once_more = explain(pair, z, "latent-counterfactual", seed=3, **options)
    assert torch.equal(once_more.values["step"], found.values["step"]), "saved latents have their labels"
    given = explain(pair, {"z": latents(24)[:3], "labels": torch.tensor([2, -1, 0])}, "layer-ablation", seed=3)
    assert given.inputs["z"][[0, 2], LATENT:].argmax(dim=1).tolist() == [2, 0]
    assert torch.equal(given.inputs["z"][1], z[1])


def test_random_steps_of_a_counterfactual_keep_the_label_as_the_search_does():
    pair, inputs = level_pair()
    found = explain(pair, inputs, "latent-counterfactual", judge="critic", confidence=0.5).values
    assert found["latent_length"].max() > 1, "long enough to change a label"
    assert found["log_odds_random"].abs().max() < 0.9, "another label is one away"


def test_random_directions_keep_the_label_and_move_the_picture_no_more_than_latents_can():
    pair, inputs = level_pair()
    found = explain(pair, inputs, "directions", by="score", num_draws=64).values
    assert found["image_change_random"].max() <= 0.4 + 1e-6, "a tenth a pixel; another label is 4 away"
    torch.testing.assert_close(found["random_directions"].norm(dim=1), torch.ones(20, dtype=torch.float64))


def test_random_steps_beside_attacks_on_latents_keep_the_label():
    found = explain(*level_pair(), "attack-latent", steps=3).values
    assert (found["random_image_change"] <= 0.4 * found["latent_budgets"] + 1e-5).all()  # float32
    assert (found["image_change"] <= 0.4 * found["latent_budgets"] + 1e-5).all()


@pytest.mark.parametrize("by", ["sefa", "pca", "boundary", "score"])
def test_no_direction_leads_from_one_label_to_another(by):
    options = {"by": by, "assess": "classes", "num_draws": 64, "extremes": 8}
    found = explain(subject(), latents(2), "directions", **options).values
    for name in ("directions", "random_directions"):
        assert not found[name][:, LATENT:].any()
        assert found[name][:, :LATENT].any(dim=1).all()


def test_directions_of_the_first_layer_are_those_of_the_network_within():
    found = explain(subject(), latents(3), "directions", by="sefa", num_directions=1)
    assert found.values["directions"].abs().tolist() == [[1.0] + [0.0] * (LATENT + CLASSES - 1)]


def test_a_generator_without_labels_is_left_as_it_is():
    plain = toys.ConvGenerator(LATENT, 14)
    critic = toys.conv_critic()
    kept = Subject(name="pair", fn=critic, generator=plain, critic=critic)
    assert kept.generator is plain
    assert kept.critic is critic


def test_a_critic_with_two_heads_is_asked_for_real_or_fake_and_at_a_label_for_both():
    critic, x = TwoHeads().eval(), images(4)
    logit, kinds = (part.detach() for part in critic(x))
    plain, at = (subject_of_run(target=target, critic=critic) for target in ("critic", "critic(2)"))
    torch.testing.assert_close(plain.fn(x), logit[:, 0])
    torch.testing.assert_close(at.fn(x), logit[:, 0] + kinds.log_softmax(dim=1)[:, 2])
    map_ = explain(plain, x, "integrated-gradients", steps=4, shuffled_network=False).values["attribution"]
    truth = critic.real.weight.detach().reshape(1, 1, SIDE, SIDE) * (x + 1)
    torch.testing.assert_close(map_, truth.to(map_), rtol=1e-4, atol=1e-5)
    effect = explain(
        Subject(name="two heads", fn=plain.fn, generator=DrawsItsLabel(), critic=critic, classifier=None),
        latents(3),
        "layer-ablation",
    )
    assert "effect_critic" in effect.values


def test_heads_that_nobody_declared_are_refused_in_one_line():
    critic = Undeclared()
    for inputs, method in ((images(2), "occlusion"), (latents(2), "layer-ablation")):
        pair = Subject(name="two heads", fn=critic, generator=DrawsItsLabel(), critic=critic)
        with pytest.raises(CallableError, match=r"must return one number .*, got tuple") as caught:
            explain(pair, inputs, method)
        assert "\n" not in str(caught.value)


def test_a_critic_that_cannot_do_without_a_label_is_held_at_one():
    at = subject_of_run(target="critic(2)", critic=NeedsLabel(), generator=DrawsItsLabel())
    x = images(3)
    torch.testing.assert_close(at.fn(x), 3 * x.flatten(1).mean(dim=1))
    torch.testing.assert_close(at.critic(x), at.fn(x))
    with pytest.raises(ExplainTargetError, match="must name a label of this critic"):
        subject_of_run(target="critic", critic=NeedsLabel())
    with pytest.raises(CallableError, match=r"OneLabel\(critic, 0\)"):
        Subject(name="d", fn=NeedsLabel(), critic=NeedsLabel())
    beside = subject_of_run(target="critic(1)", critic=NeedsLabel(), companions=images(2))
    torch.testing.assert_close(beside.fn(x), 2 * x.flatten(1).mean(dim=1))
    assert Subject(name="d", fn=abs, critic=OneLabel(NeedsLabel(), 1)).critic(x).shape == (3,)


def test_latents_of_an_explanation_can_be_given_again_with_other_labels():
    first = explain(subject(), {"z": latents(3), "labels": torch.zeros(3, dtype=torch.int64)}, "layer-ablation")
    again = explain(subject(), {"z": first.inputs["z"], "labels": torch.tensor([2, -1, 1])}, "layer-ablation")
    labels = [subject().generator.labels(each.inputs["z"]).tolist() for each in (first, again)]
    assert labels == [[0, 0, 0], [2, 0, 1]]


def test_what_labels_cannot_be_is_said():
    class Silent(DrawsItsLabel):
        classes = None

    with pytest.raises(CallableError, match="say its number of classes"):
        Subject(name="g", fn=abs, generator=Silent())
    assert Labelled(Silent(), 4).latent == LATENT + 4
    with pytest.raises(ExplainInputError, match=r"from 0 to 3 \(-1: any\), one a latent, got \[0, 4\]"):
        explain(subject(), {"z": latents(2), "labels": torch.tensor([0, 4])}, "layer-ablation")
    with pytest.raises(ExplainInputError, match=r"one a latent, got \[-7, 0\]"):
        explain(subject(), {"z": latents(2), "labels": torch.tensor([-7, 0])}, "layer-ablation")
    fewer = DrawsItsLabel()
    fewer.classes = 3
    with pytest.raises(CallableError, match="have the 4 classes of the classifier"):
        explain(subject(fewer), latents(2), "class-generation")
    plain = replace(subject(), generator=toys.ConvGenerator(LATENT, SIDE))
    with pytest.raises(ExplainOptionError, match="takes no labels"):
        explain(plain, latents(2), "class-generation", way="draw")


class LabelledMaps(toys.ConvGenerator):
    """Maps of a latent, brighter or darker by their label; a generator of every method's."""

    latent, classes = 6, 3

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(z) * (0.4 + 0.3 * y[:, None, None, None])


OF_GENERATORS = (
    "directions",
    "attfind",
    "latent-counterfactual",
    "class-generation",
    "probe-classifier",
    "dissect",
    "layer-ablation",
    "layer-noise",
    "layer-shapley",
    "layer-swap",
    "style-mixing",
    "feature-maps",
    "attack-latent",
    "conv-interaction",
    "membership",
)


@pytest.mark.parametrize("method", OF_GENERATORS)
def test_every_method_of_generators_takes_one_with_labels_and_gives_the_same_bytes_in_two_workers(method: str):
    def built():
        critic, classifier = toys.conv_critic(), invariance.three_classes()
        networks = {"generator": LabelledMaps(6, 14), "critic": critic, "classifier": classifier}
        subject = Subject(name="critic", fn=critic, module=critic, value_range=None, **networks)
        return build_explainer(subject, invariance.request_of(method))

    def in_two(chunks):
        pair = [built(), built()]
        return reversed([(chunk.index, pair[chunk.index % 2].run(chunk)) for chunk in chunks])

    alone, apart = drive(built()), drive(built(), execute=in_two)
    assert alone.meta["label_numbers"] == 3
    assert alone.scores == apart.scores
    assert alone.values.keys() == apart.values.keys()
    for name, value in alone.values.items():
        assert torch.equal(value.nan_to_num(7.0), apart.values[name].nan_to_num(7.0)), name
    if "z" in alone.inputs:
        assert alone.inputs["z"].shape[1] == 6 + 3
