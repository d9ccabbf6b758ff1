"""Tensors of more elements than 32 bits count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ganscale import ops
from ganscale.ops.penalty import masks

ELEMENTS = 2**31 + 64
ENDS = {0: 1.0, 2**30: 2.0, 2**31 - 1: -3.0, 2**31: 4.0, ELEMENTS - 1: -5.0}
BETWEEN = (1, ELEMENTS // 2 - 1, ELEMENTS // 2, ELEMENTS - 2)  # zeros, at the seam of the two channels among others
NEEDED_GIB = 12  # a result, 4 GiB, and as much for a copy that should not be; the rest is for others


def _available_gib() -> float:
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return 0.0
    lines = dict(line.split(":") for line in facts.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built"),
]


@pytest.fixture(autouse=True)
def _memory():
    if _available_gib() < NEEDED_GIB:
        pytest.skip(f"needs {NEEDED_GIB} GiB of free memory")


def image() -> torch.Tensor:
    """Return [1, 2, ELEMENTS / 2] zeros but for ``ENDS``; pages that are only read take no memory."""
    x = torch.zeros(1, 2, ELEMENTS // 2, dtype=torch.bfloat16)
    for place, value in ENDS.items():
        x.view(-1)[place] = value
    return x


def at(y: torch.Tensor, places) -> list[float]:
    return [y.view(-1)[place].item() for place in places]


def numbers(*values: float, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def test_sums_norms_and_activations_reach_both_ends_of_four_gigabytes():
    x = image()
    assert ops.sample_norm(x, impl="fused").square().item() == pytest.approx(55, rel=1e-6)  # one rounding of float32
    assert ops.channel_sum(x, impl="fused").tolist() == [3.0, -4.0]
    assert ops.channel_moments(x, impl="fused").tolist() == [[3.0, -4.0], [5.0, 50.0]]
    y = ops.bias_act(x, numbers(8.0, 16.0), activation="leaky_relu", negative_slope=0.5, impl="fused")
    assert at(y, ENDS) == [9.0, 10.0, 13.0, 20.0, 11.0]
    assert at(y, BETWEEN) == [8.0, 8.0, 16.0, 16.0]


def test_an_affine_map_does():
    how = {"mean": numbers(1.0, -1.0, dtype=torch.float32), "activation": "leaky_relu", "negative_slope": 0.5}
    scale, shift = numbers(2.0, 4.0, dtype=torch.float32), numbers(1.0, 8.0, dtype=torch.float32)
    y = ops.affine_act(image(), scale, shift, **how, impl="fused")
    assert at(y, ENDS) == [1.0, 3.0, 0.0, 28.0, -4.0]
    assert at(y, BETWEEN) == [-0.5, -0.5, 12.0, 12.0]


def test_mixed_images_do():
    real, fake = image().view(2, -1), torch.zeros(2, ELEMENTS // 2, dtype=torch.bfloat16)
    y = ops.interpolate(real, fake, numbers(0.25, 0.5), impl="fused")
    assert at(y, ENDS) == [0.25, 0.5, -1.5, 2.0, -2.5]
    assert at(y, BETWEEN) == [0.0] * 4


def test_masks_do():
    z = image()
    mask = masks.activate(z, numbers(-1.0, 3.0), 0.5, True)
    assert at(z, ENDS) == [0.0, 1.0, 0.0, 7.0, -1.0]
    assert at(z, BETWEEN) == [-0.5, -0.5, 3.0, 3.0]
    assert [int(mask[place // 8]) >> place % 8 & 1 for place in (*ENDS, *BETWEEN)] == [0, 1, 0, 1, 0, 0, 0, 1, 1]
    masks.scale(z, mask, 0.5, True)
    assert at(z, ENDS) == [0.0, 1.0, 0.0, 7.0, -0.5]
    assert at(z, BETWEEN) == [-0.25, -0.25, 3.0, 3.0]


def test_a_picture_does():
    side = 1024  # of the input; one tap an output, so that its value is known
    x, weight = torch.zeros(1, 1, side, side, dtype=torch.bfloat16), torch.zeros(1, 1, 46, 46, dtype=torch.bfloat16)
    x[0, 0, 0, 0], x[0, 0, -1, -1], weight[0, 0, 0, 0], weight[0, 0, -1, -1] = 2.0, 3.0, 5.0, 7.0
    how = {"stride": 46, "activation": "leaky_relu", "negative_slope": 0.5, "impl": "fused"}
    y = ops.conv_transpose_act(x, weight, numbers(-1.0), **how)
    assert y.shape == (1, 1, 46 * side, 46 * side)
    last = y.numel() - 1
    assert last > 2**31
    assert at(y, (0, 45 * 46 * side + 45, last, last - 1, 2**31)) == [9.0, 13.0, 20.0, -0.5, -0.5]
