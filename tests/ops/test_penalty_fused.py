"""The fused gradient penalty equals plain automatic differentiation, in every kind of critic it takes."""

from __future__ import annotations

import pytest
import torch
from penalty_cases import CASES, KINDS, assert_same, case, options_of, penalty_and_gradients

from ganscale import ops

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGES = [name for name in CASES if len(CASES[name][1]) == 3]


def _both(name, layout, kind):
    """The penalties and gradients of a case, fused and plain, each from a critic of its own."""
    found = []
    for impl in ("auto", "reference"):
        critic, x = case(name)
        x = x.contiguous(memory_format=LAYOUTS[layout])
        options = options_of(kind, case(name)[0], x)
        found.append(penalty_and_gradients(critic, x, impl, list(critic.parameters()), **options))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_penalty_and_every_gradient_equal_automatic_differentiation(name, kind):
    critic, x = case(name)
    assert ops.explain_choice(critic, x).path == "fused", ops.explain_choice(critic, x).reason
    ours, plain = _both(name, "contiguous", kind)
    assert_same(ours, plain)
    if name != "linear":  # whose norms are all the center
        weights = [n.endswith("weight") for n, _ in critic.named_parameters()]
        assert all(g.abs().max() > 0 for g, weight in zip(plain[1], weights, strict=True) if weight)


@pytest.mark.parametrize("name", IMAGES)
def test_the_same_holds_with_channels_last(name):
    assert_same(*_both(name, "channels_last", "two-sided"))
