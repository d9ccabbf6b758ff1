"""Tensors of more elements than 32 bits count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ganscale import ops

ELEMENTS = 2**31 + 64
NEEDED_GIB = 12  # the result of bias_act, 4 GiB, and as much for a copy that should not be; the rest is for others

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built"),
]


def _available_gib() -> float:
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return 0.0
    lines = dict(line.split(":") for line in facts.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


def test_sums_norms_and_activations_reach_both_ends_of_four_gigabytes():
    if _available_gib() < NEEDED_GIB:
        pytest.skip(f"needs {NEEDED_GIB} GiB of free memory")
    x = torch.zeros(1, 2, ELEMENTS // 2, dtype=torch.bfloat16)  # pages that are only read take no memory
    flat = x.view(-1)
    ends = {0: 1.0, 2**30: 2.0, 2**31 - 1: -3.0, 2**31: 4.0, ELEMENTS - 1: -5.0}
    for place, value in ends.items():
        flat[place] = value
    assert ops.sample_norm(x, impl="fused").square().item() == pytest.approx(55, rel=1e-6)  # one rounding of float32
    assert ops.channel_sum(x, impl="fused").tolist() == [3.0, -4.0]
    bias = torch.tensor([8.0, 16.0], dtype=torch.bfloat16)
    y = ops.bias_act(x, bias, activation="leaky_relu", negative_slope=0.5, impl="fused").view(-1)
    assert [y[place].item() for place in ends] == [9.0, 10.0, 13.0, 20.0, 11.0]
    assert [y[place].item() for place in (1, ELEMENTS // 2 - 1, ELEMENTS // 2, ELEMENTS - 2)] == [8.0, 8.0, 16.0, 16.0]
