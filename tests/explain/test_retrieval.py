"""Rankings of a gallery: own copies come first whoever ranks, labels count as by hand, latents are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ganscale.explain import Classifier, Explanation, Subject, build_explainer, drive, explain, make_request
from ganscale.explain.beside import Beside
from ganscale.explain.errors import CallableError, ExplainTargetError
from ganscale.explain.likeness import Retrieval
from ganscale.explain.likeness.inversion import search
from ganscale.explain.likeness.ranking import average_precision, random_rankings, recall_at

SIDE = 6


class Knows(nn.Module):
    """A classifier whose one feature is the first pixel."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0, :1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.features(x), -self.features(x)], dim=1)


class Codes(toys.LinearGenerator):
    """A linear generator that encodes by its transpose."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.start.weight


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def subject() -> Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 12), nn.Tanh(), nn.Linear(12, 1), nn.Flatten(0))
    classifier = Classifier(Knows(), name="knows", example=images(2))
    networks = {"generator": Codes(4, SIDE), "critic": critic, "classifier": classifier}
    return Subject(name="critic", fn=critic, module=critic, value_range=None, **networks)


@pytest.mark.parametrize("of", ["critic", "classifier", "encoder", "generator"])
def test_a_query_finds_its_own_copy_first_whoever_ranks(of: str):
    gallery, own = images(260), [3, 140, 259]  # two parts of a gallery
    if of == "generator":
        with torch.no_grad():
            gallery = subject().generator(torch.randn(40, 4, generator=torch.Generator().manual_seed(3)))
        own = [3, 14, 39]
    found = explain(subject(), {"x": gallery[own], "real": gallery}, "retrieval", of=of, k=3).values
    assert found["pixels_neighbours"][:, 0].tolist() == own
    assert found["features_neighbours"][:, 0].tolist() == own
    # in another company of rows features are a rounding of float32 away, and where a search ends further
    assert found["features_distance"][:, 0].max() <= (1e-3 if of == "generator" else 1e-6)


def test_a_critic_that_looks_across_its_batch_knows_a_copy_too():
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.end = nn.Linear(SIDE * SIDE, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.end((x - x.mean(dim=0)).flatten(1))[:, 0]

    critic, gallery = Beside(Spread(), images(3, seed=5)), images(40)
    pair = Subject(name="beside", fn=critic, module=critic, critic=critic, value_range=None)
    found = explain(pair, {"x": gallery[[7, 8]], "real": gallery}, "retrieval", k=2).values
    assert found["features_neighbours"][:, 0].tolist() == [7, 8]
    assert found["codes"].shape[0] == 2 + 40


def test_the_latent_of_a_picture_is_found_and_images_are_alike_by_it():
    generator = Codes(4, SIDE).requires_grad_(False)
    z = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    far, latents = search(generator, generator(z), z + 0.7, 300)
    assert float(far.max()) < 1e-3
    torch.testing.assert_close(latents, z, atol=1e-3, rtol=0)
    few, _ = search(generator, generator(z), z + 0.7, 5)
    assert (far <= few).all()
    found = explain(subject(), {"x": generator(z), "real": images(10)}, "retrieval", of="generator", k=2, steps=200)
    score = found.scores["inversion_distance"]
    assert score.value < 0.05 * score.control
    assert score.beats_control


def test_a_search_in_two_workers_gives_the_bytes_of_one():
    with torch.no_grad():
        gallery = subject().generator(torch.randn(260, 4, generator=torch.Generator().manual_seed(3)))
    inputs = {"x": gallery[:5], "real": gallery}
    request = make_request(Retrieval, inputs, options={"of": "generator", "steps": 3, "draws": 20})

    def in_two(chunks):
        pair = [build_explainer(subject(), request) for _ in range(2)]
        return reversed([(chunk.index, pair[chunk.index % 2].run(chunk)) for chunk in chunks])

    alone = drive(build_explainer(subject(), request))
    apart = drive(build_explainer(subject(), request), execute=in_two)
    assert alone.scores == apart.scores
    assert alone.meta["cost"]["rows_backward"] == apart.meta["cost"]["rows_backward"] == 3 * 265
    assert all(torch.equal(value, apart.values[name]) for name, value in alone.values.items())


def labelled(knows: bool) -> Explanation:
    """Queries and gallery whose first pixel tells the class (or does not), among 35 pixels of noise."""
    gallery, queries = images(400), images(30, seed=1)
    labels, asked = torch.arange(400) % 4, torch.arange(30) % 4
    if knows:
        gallery[:, 0, 0, 0], queries[:, 0, 0, 0] = labels / 2 - 0.75, asked / 2 - 0.75
    inputs = {"x": queries, "labels": asked, "real": gallery, "real_labels": labels}
    return explain(subject(), inputs, "retrieval", of="classifier")


def test_a_network_that_knows_classes_beats_pixels_and_chance_and_one_that_does_not_beats_neither():
    found = labelled(knows=True).scores
    for name in ("recall_at_k", "mean_average_precision"):
        assert found[name].value == 1
        assert found[name].beats_control
    assert found["recall_at_k"].control == pytest.approx(1 - 0.75**5, abs=0.05)  # 600 rankings: 2.9 standard errors
    chance = 0.25 * np.mean([(1 + (place - 1) * 99 / 399) / place for place in range(1, 101)])
    assert found["mean_average_precision"].control == pytest.approx(chance, rel=0.05)
    assert found["mean_average_precision_against_pixels"].control < 0.5
    assert found["mean_average_precision_against_pixels"].beats_control
    blind = labelled(knows=False).scores
    assert blind["mean_average_precision"].value == pytest.approx(chance, rel=0.25)
    assert not blind["mean_average_precision"].beats_control


def test_a_querys_own_copy_is_no_merit():
    gallery = images(50)
    labels = torch.zeros(50, dtype=torch.int64)
    labels[4] = labels[20] = 1
    gallery[:, 0, 0, 0] = torch.linspace(-1, 1, 50)
    inputs = {"x": gallery[4:5], "labels": labels[4:5], "real": gallery, "real_labels": labels}
    found = explain(subject(), inputs, "retrieval", of="classifier", k=5).scores
    assert found["recall_at_k"].value == 0, "the only other of its class is sixteen steps away"
    # by the first pixel 4 lies between 3 and 5, ..., and 8 of the lower ones are there: 20 comes after 4 + 15
    assert found["mean_average_precision"].value == pytest.approx(1 / 20)


def test_average_precision_and_recall_are_those_of_scikit_learn_and_of_counting():
    metrics = toys.peer("sklearn.metrics")
    rng = np.random.default_rng(0)
    right = rng.random((9, 40)) < 0.3
    wanted = [metrics.average_precision_score(row, -np.arange(40.0)) for row in right]
    np.testing.assert_allclose(average_precision(right, right.sum(axis=1)), wanted, atol=1e-12)
    assert average_precision(np.array([[1, 1, 0]], dtype=bool), np.array([7])).tolist() == [2 / 3]
    assert np.isnan(average_precision(np.zeros((1, 3), dtype=bool), np.array([0]))).all()
    assert recall_at(np.array([[0, 0, 1], [0, 1, 0]], dtype=bool), 2).tolist() == [0, 1]
    drawn = random_rankings(10, 50, 20, 400, rng)
    assert drawn.shape == (400, 20)
    assert drawn.mean() == pytest.approx(0.2, abs=0.02)  # 8000 places: 4.5 standard errors


def test_what_cannot_rank_is_said():
    class Nameless(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z[:, :, None, None]

    pair = Subject(name="g", fn=abs, generator=Nameless(), value_range=None)
    with pytest.raises(CallableError, match="say its number of latents"):
        explain(pair, {"x": images(2), "real": images(9)}, "retrieval", of="generator")
    with pytest.raises(ExplainTargetError, match="got encoder"):
        explain(pair, {"x": images(2), "real": images(9)}, "retrieval", of="encoder")
