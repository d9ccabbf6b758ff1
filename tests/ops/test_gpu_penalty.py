"""Masks on a GPU, and how near its fused penalty is to float64. Cases named small are run under compute-sanitizer."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DTYPES, MARKS, convolutions_in, distance, needs_memory, tensor
from torch import nn

from ganscale import ops
from ganscale.ops.penalty import masks as penalty_masks
from ganscale.ops.penalty import plan as penalty_plan

pytestmark = MARKS
SHAPES = [(1, 1), (3, 3), (67, 40), (2, 7, 7, 7), (3, 4, 8, 8), (9, 70, 3), (2, 5, 1000), (40, 3, 72)]


@pytest.fixture(autouse=True)
def _fuses_small_critics(monkeypatch):
    monkeypatch.setattr(penalty_plan, "PAYS_FROM", 0)


def _penalty_and_gradients(critic, x, impl, **options):
    penalty = ops.gradient_penalty(critic, x, impl=impl, **options)
    weights = torch.linspace(0.5, 2, len(penalty), dtype=penalty.dtype, device=x.device)
    parameters = list(critic.parameters())
    found = torch.autograd.grad((penalty * weights).sum(), parameters, allow_unused=True)
    return penalty.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _stack(device="cuda", dtype=torch.float32, wide=16):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, wide, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(wide, 2 * wide, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(2 * wide, 1, 4), nn.Flatten()).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"small-{shape}")
def test_masks_and_what_they_do_equal_the_cpu_bit_by_bit(shape, dtype):
    for last in (False, True) if len(shape) == 4 else (False,):
        for bias in (None, tensor(shape[1], dtype=dtype, seed=1)):
            for slope in (0.0, 0.2):
                x = tensor(*shape, dtype=dtype, last=last)
                x.flatten()[::5] = 0
                there, here = x.clone(), x.cpu()
                mask = penalty_masks.activate(there, bias, slope, True)
                twin = penalty_masks.activate(here, None if bias is None else bias.cpu(), slope, True)
                assert torch.equal(there.cpu(), here)
                assert torch.equal(mask.cpu(), twin)
                penalty_masks.scale(there, mask, slope, True)
                penalty_masks.scale(here, twin, slope, True)
                assert torch.equal(there.cpu(), here)


def test_masks_of_more_than_2_to_31_elements_are_right_at_both_ends():
    needs_memory(12)
    x = torch.empty(2**20 + 1, 8, 2**8 + 1, device="cuda", dtype=torch.bfloat16).normal_()
    ends = [slice(0, 2), slice(len(x) - 2, len(x))]
    before = [x[end].clone() for end in ends]
    mask = penalty_masks.activate(x, None, 0.0, True)
    for end, z in zip(ends, before, strict=True):
        assert torch.equal(x[end], z.relu())
        first = end.start * x[0].numel() // 8
        bits = mask[first : first + z.numel() // 8].reshape(-1, 1) >> torch.arange(8, device="cuda") & 1
        assert torch.equal(bits.flatten().bool(), (z > 0).flatten())


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_fused_penalty_is_as_precise_as_the_convolutions_are_told_to_be(precision):
    exact = _penalty_and_gradients(_stack(dtype=torch.float64), tensor(32, 3, 16, 16, dtype=torch.float64), "reference")
    with convolutions_in(precision):
        ours = _penalty_and_gradients(_stack(), tensor(32, 3, 16, 16), "fused")
        plain = _penalty_and_gradients(_stack(), tensor(32, 3, 16, 16), "reference")
    for a, b, c in zip([ours[0], *ours[1]], [plain[0], *plain[1]], [exact[0], *exact[1]], strict=True):
        # Beyond twice torch's own distance: sums in another order, and a unit at the kink may fall on either side.
        assert distance(a, c) <= 2 * distance(b, c) + (2e-5 if precision == "ieee" else 2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_scaled_penalty_in_16_bits_is_as_near_as_plain_autograd(dtype):
    exact = _penalty_and_gradients(_stack(dtype=torch.float64), tensor(16, 3, 16, 16, dtype=torch.float64), "reference")
    far = {}
    for impl in ("fused", "reference"):
        critic = _stack()
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)
        optimiser = torch.optim.SGD(critic.parameters(), lr=0.0)
        with torch.autocast("cuda", dtype=dtype):
            penalty = ops.gradient_penalty(critic, tensor(16, 3, 16, 16), impl=impl)
        assert penalty.dtype == torch.float32
        weights = torch.linspace(0.5, 2, len(penalty), device="cuda")
        scaler.scale((penalty * weights).sum()).backward()
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        scaler.update()
        assert scaler.get_scale() == 2.0**12  # nothing overflowed
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in critic.parameters()]
        gradients = torch.cat([g.flatten() for g in found])
        far[impl] = distance(gradients, torch.cat([g.flatten() for g in exact[1]]))
    assert far["fused"] <= 2 * far["reference"] + 1e-3
