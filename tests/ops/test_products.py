"""Convolutions as matrix products: equal to torch's, chosen where they pay, and seen nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ganscale import ops
from ganscale.ops import _products

LAST = torch.channels_last
# (N, O, C, kernel, stride, padding, h, w, what the stride leaves over): odd sides, one channel, patches outside
SHAPES = [
    (2, 5, 3, (4, 4), (2, 2), (1, 1), 4, 4, 0),
    (1, 1, 1, (1, 1), (1, 1), (0, 0), 3, 5, 0),
    (3, 4, 7, (3, 3), (1, 1), (1, 1), 5, 2, 0),
    (2, 3, 2, (5, 5), (2, 2), (2, 2), 3, 4, 1),
    (2, 2, 3, (2, 2), (3, 3), (0, 0), 2, 3, 2),
    (1, 3, 2, (3, 5), (2, 1), (0, 3), 4, 3, 1),
    (2, 2, 1, (3, 3), (1, 1), (3, 3), 7, 7, 0),
]

pytestmark = pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")


@pytest.fixture(params=["in one part", "sample by sample"])
def always(monkeypatch, request):
    monkeypatch.setattr(_products, "pays", lambda *_: True)
    if request.param == "sample by sample":
        monkeypatch.setattr(_products, "PART_BYTES", 1)


def _case(shape, dtype):
    samples, o, c, kernel, stride, padding, h, w, over = shape
    sides = [
        (side - 1) * s - 2 * p + k + min(over, s - 1)
        for side, s, p, k in zip((h, w), stride, padding, kernel, strict=True)
    ]
    torch.manual_seed(0)
    big, small = torch.randn(samples, c, *sides), torch.randn(samples, o, h, w)
    return (
        big.to(dtype, memory_format=LAST),
        small.to(dtype, memory_format=LAST),
        torch.randn(o, c, *kernel).to(dtype, memory_format=LAST),
        stride,
        padding,
    )


def _truth(big, small, weight, stride, padding):
    """Y, X and dw in float64, by torch."""
    big, weight = big.double().requires_grad_(), weight.double().requires_grad_()
    y = torch.nn.functional.conv2d(big, weight, None, stride, padding)
    return y.detach(), *torch.autograd.grad(y, (big, weight), small.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_three_products_equal_a_convolution_and_its_gradients(shape, dtype, always):
    big, small, weight, stride, padding = _case(shape, dtype)
    ours = (
        _products.convolve(big, weight, None, stride, padding),
        _products.transpose(small, weight, tuple(big.shape[2:]), stride, padding),
        _products.weight_gradient(big, small, weight.shape, stride, padding),
    )
    # a few roundings of each dtype relative to the largest value: patches are rounded once more before they are summed
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for mine, truth in zip(ours, _truth(big, small, weight, stride, padding), strict=True):
        assert mine.dtype == dtype
        assert mine.shape == truth.shape
        assert (mine.double() - truth).abs().max() <= tolerance * truth.abs().max()


def test_the_bias_joins_the_product(always):
    big, _, weight, stride, padding = _case(SHAPES[0], torch.float32)
    bias = torch.randn(len(weight))
    ours = _products.convolve(big, weight, bias, stride, padding)
    torch.testing.assert_close(ours, torch.nn.functional.conv2d(big, weight, bias, stride, padding))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_folding_is_the_transpose_of_unfolding_on_any_number_of_threads(shape):
    big, small, weight, stride, padding = _case(shape, torch.float64)
    size = tuple(small.shape[2:])
    patches = _products._unfold(big, weight.shape, size, stride, padding)
    others = torch.randn_like(patches)
    folded, again = torch.empty_like(big), torch.empty_like(big)
    _products._fold(others, folded, weight.shape, stride, padding)
    torch.testing.assert_close((patches * others).sum(), (big * folded).sum())
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            _products._fold(others, again, weight.shape, stride, padding)
            assert torch.equal(again, folded)
            assert torch.equal(_products._unfold(big, weight.shape, size, stride, padding), patches)
    finally:
        torch.set_num_threads(before)


def _multiplications(call):
    with profile(activities=[ProfilerActivity.CPU]) as record:
        call()
    return {event.key for event in record.key_averages()}


def test_a_generators_block_of_few_pixels_multiplies_matrices_and_gives_torchs_gradients():
    torch.manual_seed(0)
    x = torch.randn(2, 256, 4, 4).contiguous(memory_format=LAST).requires_grad_()
    weight = torch.randn(256, 128, 4, 4).contiguous(memory_format=LAST).requires_grad_()
    gy = torch.randn(2, 128, 8, 8)

    def gradients(impl):
        y = ops.conv_transpose_act(x, weight, stride=2, padding=1, activation="linear", impl=impl)
        return torch.autograd.grad(y, (x, weight), gy)

    ours, torchs = gradients("fused"), gradients("reference")
    for mine, truth in zip(ours, torchs, strict=True):
        assert (mine - truth).norm() <= 1e-5 * truth.norm()
    assert "aten::mm" in _multiplications(lambda: gradients("fused"))
    assert "aten::mm" not in _multiplications(lambda: gradients("reference"))


def test_what_torch_does_as_well_is_left_to_it(monkeypatch):
    monkeypatch.setattr(_products, "_is_intel", lambda: True)
    wide = torch.Size((512, 256, 4, 4))
    small = torch.empty(64, 512, 4, 4).contiguous(memory_format=LAST)
    assert _products.pays("transpose", small, 16, wide)
    assert not _products.pays("transpose", small.double(), 16, wide)
    assert not _products.pays("transpose", small.contiguous(), 16, wide)
    assert not _products.pays("transpose", small, 64, wide)
    assert not _products.pays("transpose", small, 16, torch.Size((64, 32, 4, 4)))
    before = ops.use_impl("reference")
    try:
        assert not _products.pays("transpose", small, 16, wide)
    finally:
        ops.use_impl(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_elsewhere_than_on_intel_only_weight_gradients_are_float32_products(monkeypatch, dtype):
    monkeypatch.setattr(_products, "_multiplies_bf16", lambda: True)
    weight, image = torch.Size((512, 256, 4, 4)), torch.empty(64, 512, 4, 4, dtype=dtype).contiguous(memory_format=LAST)
    kinds = ("convolve", "transpose", "weights")
    for is_intel in (True, False):
        monkeypatch.setattr(_products, "_is_intel", lambda is_intel=is_intel: is_intel)
        paid = [_products.pays(kind, image, 16, weight) for kind in kinds]
        assert paid == ([True] * 3 if is_intel or dtype == torch.bfloat16 else [False, False, True])
