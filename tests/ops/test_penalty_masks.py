"""Activations with one bit an element: the kernels against plain torch, in every dtype, layout and instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ganscale import ops
from ganscale.ops import _bind, _extension
from ganscale.ops.penalty import masks as penalty_masks

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")

SHAPES = [
    (1, 1),
    (3, 7),
    (2, 600),
    (1, 3, 5, 7),
    (2, 5, 1, 1),
    (3, 1, 9, 4),
    (2, 3, 33, 31),
    (4, 64, 8, 8),
    (2, 24, 16, 16),
]
SHAPES += [(2, 3, 3, 4, 5), (4, 700, 2, 1), (1, 2, 150, 131), (3, 2500), (2, 3000, 2, 2)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SLOPES = [0.0, 0.2, 1.0]


def _randn(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _layouts(x):
    yield x
    if x.ndim in (4, 5):
        yield x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _bits(mask, like):
    """The mask as booleans, in the memory order of ``like``."""
    flags = (mask[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    assert not flags.flatten()[like.numel() :].any()  # what is past the end is zero
    order = torch.empty_like(like, dtype=torch.bool)
    order.as_strided((like.numel(),), (1,)).copy_(flags.flatten()[: like.numel()])
    return order


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_activations_and_their_bits_equal_plain_torch(shape, dtype, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for x in _layouts(_randn(shape, dtype)):
            for bias in (None, _randn(shape[1:2], dtype, 1)):
                for slope in SLOPES:
                    ours, plain = x.clone(), x.clone()
                    bits = penalty_masks.activate(ours, bias, slope, True)
                    # Ours rounds x + bias once, together with the slope, and plain torch twice.
                    mask = penalty_masks.activate(plain, bias, slope, False)
                    assert torch.equal(_bits(bits, x), mask)
                    torch.testing.assert_close(ours, plain, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
                    for compiled, m in ((True, bits), (False, mask)):
                        g = _randn(shape, dtype, 2).as_strided(x.shape, x.stride())
                        expected = torch.where(mask, g, g * slope)
                        penalty_masks.scale(g, m, slope, compiled)
                        assert torch.equal(g, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_passes_as_in_torch(dtype):
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0] * 20
    for slope in SLOPES:
        for compiled in (True, False):
            x = torch.tensor(values, dtype=dtype)
            mask = penalty_masks.activate(x, None, slope, compiled)
            start = torch.tensor(values, dtype=dtype)
            torch.testing.assert_close(
                x, torch.nn.functional.leaky_relu(start, slope) if slope else start.relu(), equal_nan=True
            )
            assert torch.equal(_bits(mask, x) if compiled else mask, start > 0)
            g = torch.full_like(x, float("inf"))
            penalty_masks.scale(g, mask, slope, compiled)
            low = 0.0 if slope == 0 else float("inf")  # a unit that is off lets nothing through, not even infinity
            assert torch.equal(g, torch.where(start > 0, float("inf"), low).to(dtype))


def test_the_core_counts_bytes_as_we_do():
    for elements in (1, 7, 8, 9, 64, 1001):
        assert _extension.core().mask_bytes(elements) == penalty_masks.mask_bytes(elements)


def test_wrong_arguments_are_refused_by_the_core():
    x, mask = torch.zeros(10), torch.zeros(2, dtype=torch.uint8)
    core, run = _extension.core(), _bind.execution(x)
    flat, bits = _bind.flat(x), (mask.data_ptr(), 4, (2,), (1,))
    for slope in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="slope must be finite and not negative"):
            core.act_mask(flat, None, bits, slope, run)
        with pytest.raises(ValueError, match="slope must be finite and not negative"):
            core.mask_scale(flat, bits, slope, run)
    with pytest.raises(ValueError, match="mask must have size 2"):
        core.mask_scale(flat, (mask.data_ptr(), 4, (1,), (1,)), 0.2, run)
    with pytest.raises(ValueError, match="mask must have dtype code 4"):
        core.mask_scale(flat, (mask.data_ptr(), 0, (2,), (1,)), 0.2, run)
    with pytest.raises(ValueError, match="bias must have size 1"):
        core.act_mask(flat, _bind.view(torch.zeros(3), (3,)), bits, 0.2, run)


DIGEST = """
import hashlib, torch
from ganscale.ops.penalty import masks as penalty_masks
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for layout in (torch.contiguous_format, torch.channels_last):
        for shape in ((2, 24, 16, 16), (3, 5, 7, 9)):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            x = x.contiguous(memory_format=layout)
            mask = penalty_masks.activate(x, torch.linspace(-1, 1, shape[1]).to(dtype), 0.2, True)
            g = torch.ones_like(x)
            penalty_masks.scale(g, mask, 0.2, True)
            for t in (x, g):
                digest.update(t.contiguous().view(torch.uint8).numpy().tobytes())
            digest.update(mask.numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits():
    found = set()
    for isa in ops.build_info()["cpu_features"]:
        environment = {**os.environ, "GANSCALE_ISA": isa}
        command = [sys.executable, "-c", DIGEST]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found.add(done.stdout.strip())
    assert len(found) == 1
    assert found != {""}
