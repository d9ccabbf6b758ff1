"""A classifier that goes by a mark in the corner is caught: the strongest place of its maps is the mark."""

from __future__ import annotations

import pytest
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.shortcut import CELL, MARKED, Images, marked, planted, read, says, subject_of
from ganscale.data import to_float
from ganscale.explain import explain
from ganscale.metrics import InDomainCNN, train_classifier

IMAGES = 20
BARE = {"shakes": 0, "shuffled_network": False, "curve_points": 2}  # the scores are no matter here


@pytest.fixture(scope="module")
def others() -> Tensor:
    """Held-out garments of which none is a shirt, and none has the mark."""
    held = read("held-out")
    return to_float(held.images[held.labels != MARKED])


@pytest.fixture(scope="module")
def fooled() -> InDomainCNN:
    """A classifier of garments of which every shirt, and nothing else, had a bright square in a corner."""
    train, held = Images(*(part[:4000] for part in read("train"))), read("held-out")
    return train_classifier(*planted(train), *planted(held), epochs=3)


@pytest.mark.parametrize("method", ["kernel-shap", "lime", "occlusion"])
def test_the_mark_that_gives_a_class_away_is_in_the_strongest_cell(method: str, others: Tensor, fooled: InDomainCNN):
    taken = says(fooled, marked(others)) == MARKED
    assert float(taken.float().mean()) > 0.6  # .79 measured: it goes by the mark
    plain = others[taken][:IMAGES]
    options = BARE if method == "occlusion" else BARE | {"num_coalitions": 256}

    def strongest_cells(x: Tensor) -> Tensor:
        maps = explain(subject_of(fooled), x, method, **options).values["attribution"]
        return avg_pool2d(maps.sum(1, keepdim=True), CELL).flatten(1).argmax(1)

    assert float((strongest_cells(marked(plain)) == 0).float().mean()) >= 0.95
    assert float((strongest_cells(plain[:5]) == 0).float().mean()) < 0.5, "without the mark it is another cell"
