"""Each attack, code and likeness has pictures of its own, drawn from what was saved, pictures or not."""

from __future__ import annotations

import numpy as np
import pytest
import test_explain_invariance as invariance
import torch
import toys

from ganscale.dashboards.panels import draw_panels
from ganscale.explain import build_explainer, drive, explain

PANELS = {
    "attack-input": {"attack-curves", "attack-examples"},
    "attack-latent": {"latent-attacks"},
    "explanation-robustness": {"attacked-maps"},
    "autoencoder": {"reconstructions", "code-map"},
    "disentanglement": {"factor-matrix"},
    "retrieval": {"neighbours"},
    "membership": {"membership"},
    "conv-interaction": {"alignment", "side-by-side", "unit-logits"},
}


@pytest.mark.parametrize("method", PANELS)
def test_a_method_draws_its_own_panels(method: str):
    found = drive(build_explainer(invariance.subject(), invariance.request_of(method)))
    panels = draw_panels(found)
    assert panels.keys() == PANELS[method]
    for panel in panels.values():
        assert panel.dtype == np.uint8
        assert panel.shape[2] == 3
        assert len(np.unique(panel)) > 10  # something is drawn


def test_attacks_on_what_is_no_picture_are_drawn_without_one():
    weight = torch.tensor([1.0, -2.0, 0.5])
    for method in ("attack-input", "explanation-robustness"):
        found = explain(toys.Linear(weight), torch.randn(3, 3), method)
        assert all(panel.shape[0] > 100 for panel in draw_panels(found).values())
