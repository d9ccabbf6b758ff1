"""Removing what tells classes apart leaves nothing to learn; removing anything else does not."""

from __future__ import annotations

import pickle
from functools import reduce

import pytest
import torch

from ganscale.dashboards.panels import draw_panels
from ganscale.explain import Subject, build_explainer, explain, make_request
from ganscale.explain.errors import ExplainInputError, ExplainOptionError
from ganscale.explain.roar import Roar, held_out


def patches(count: int = 120) -> dict[str, torch.Tensor]:
    """Noise whose class is the brightness of one 2x2 patch."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    labels = labels[torch.randperm(count, generator=generator)]
    x = torch.rand(count, 1, 14, 14, generator=generator) * 0.6 - 0.3
    x[:, 0, 4:6, 8:10] = torch.where(labels == 1, 0.9, -0.7)[:, None, None]
    return {"x": x, "labels": labels}


def the_patch(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0, 4:6, 8:10].square().sum(dim=(1, 2))


def the_rest(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(1).sum(dim=1) - the_patch(x)


def test_without_the_patch_that_tells_the_classes_apart_nothing_is_learned():
    found = explain(the_patch, patches(), "roar", of="input-x-gradient", repeats=2, epochs=12)
    accuracy, chance = found.values["accuracy"], found.meta["majority"]
    assert float(accuracy[1:].mean()) <= chance + 0.15  # 30 held-out samples: a spread of .09
    assert float(accuracy[0].min()) > 0.85  # nothing is removed
    assert float(found.values["accuracy_random"][1].mean()) > 0.85  # a tenth removed at random rarely hits it
    assert "banner" not in found.meta
    assert not found.not_better_than_random
    assert draw_panels(found)["retraining"].shape[2] == 3


def test_a_map_that_points_elsewhere_does_not_beat_chance():
    found = explain(the_rest, patches(), "roar", of="input-x-gradient", repeats=2, epochs=12)
    assert found.not_better_than_random


def test_where_there_is_nothing_to_learn_the_test_says_that_it_says_nothing():
    given = patches()
    given["x"] = torch.zeros_like(given["x"]) + 0.5  # every picture alike
    found = explain(the_rest, given, "roar", of="input-x-gradient", repeats=2, epochs=1)
    assert found.values["removed_share"][0] == 0
    assert any("the test says nothing" in words for words in found.meta["warnings"])
    assert "the test says nothing" in found.meta["banner"]


def test_what_is_sent_with_each_retraining_is_a_bit_a_region():
    explainer = build_explainer(
        Subject(name="patch", fn=the_patch), make_request(Roar, patches(200), options={"of": "input-x-gradient"})
    )
    maps = reduce(explainer.merge, map(explainer.run, explainer.plan()))
    bits = 200 * 7 * 7
    sizes = [len(pickle.dumps(chunk)) for chunk in explainer.plan(maps)]
    assert max(sizes) <= bits / 8 + 500  # what stands around: 300 bytes


@pytest.mark.parametrize("labels", [[0, 1] * 8, [0] * 8 + [1] * 8, [0, 1, 1, 2] * 4])
def test_every_class_is_held_out_in_any_order(labels):
    labels = torch.tensor(labels)
    held = held_out(labels)
    for name in labels.unique():
        assert int(held[labels == name].sum()) == -(-int((labels == name).sum()) // 4)


def test_what_cannot_be_retrained_is_refused():
    few = {name: tensor[:20] for name, tensor in patches().items()}
    with pytest.raises(ExplainInputError, match="40 samples"):
        explain(the_patch, few, "roar")
    with pytest.raises(ExplainInputError, match="labels"):
        explain(the_patch, patches()["x"], "roar")
    with pytest.raises(ExplainOptionError, match="of must be one of"):
        explain(the_patch, patches(), "roar", of="directions")
