"""Convolutions on the CPU as matrix products, where that is faster than oneDNN's direct ones.

One weight w [O, C, KH, KW] links a big image X [N, C, H, W] and a small one Y [N, O, h, w]: a convolution makes Y of X,
a transposed one X of Y, and both have the same weight gradient. With the patches of X as the rows of a matrix P
[N h w, KH KW C] and everything channels-last, these are P W^T, the sum of Y W over overlapping patches, and Y^T P.
oneDNN avoids the matrix, and pays for it where images are small and channels many: it multiplies what the padding
crops, and reorders weights that are as large as the images. Its 16-bit weight gradients are slow at any size.

Results differ from torch's by rounding alone. ``convolve``, ``transpose`` and ``weight_gradient`` return None where
torch's own way is as good; they record no graph, so they are for the insides of operators.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from ganscale.ops import _bind, _choice, _extension
from ganscale.ops._calls import Pair

LAST = torch.channels_last


def _rows(x: Tensor) -> Tensor:
    """The memory of a channels-last image [N, C, H, W] as [N, H, W, C]."""
    return x.contiguous(memory_format=LAST).permute(0, 2, 3, 1)


def _matrix(weight: Tensor) -> Tensor:
    """w as [O, KH KW C]."""
    return _rows(weight).reshape(weight.shape[0], -1)


def _shape(weight_shape: torch.Size, stride: Pair, padding: Pair) -> tuple[int, ...]:
    return (*weight_shape[2:], *stride, *padding)


def _unfold(big: Tensor, weight_shape: torch.Size, small_size: Pair, stride: Pair, padding: Pair) -> Tensor:
    """P, [N, h, w, KH KW C]."""
    rows = _rows(big)
    length = weight_shape[1] * weight_shape[2] * weight_shape[3]
    patches = big.new_empty(len(big), *small_size, length)
    views = _bind.view(rows, tuple(rows.shape)), _bind.view(patches, tuple(patches.shape))
    _extension.core().unfold(*views, _shape(weight_shape, stride, padding), _bind.execution(big))
    return patches


def _fold(patches: Tensor, big: Tensor, weight_shape: torch.Size, stride: Pair, padding: Pair) -> None:
    """Write the sums of overlapping patches to ``big``, [N, C, H, W] in channels-last order."""
    rows = big.permute(0, 2, 3, 1)
    core, view = _extension.core(), _bind.view(rows, tuple(rows.shape))
    size = core.fold_workspace_bytes(view, _bind.execution(patches))
    workspace = torch.empty(size, dtype=torch.uint8)
    shape = _shape(weight_shape, stride, padding)
    core.fold(_bind.view(patches, tuple(patches.shape)), view, shape, _bind.execution(patches, workspace))


def _image(rows_NHWC: Tensor) -> Tensor:
    return rows_NHWC.permute(0, 3, 1, 2)


# --- the choice ------------------------------------------------------------------------------------------------------

# Where the product won on one AVX-512 core with AMX: up to this many pixels of Y, from this many elements of w on.
PAYS = {
    ("convolve", torch.float32): (16, 2**20),
    ("transpose", torch.float32): (16, 2**19),
    ("weights", torch.float32): (16, 2**19),
    ("convolve", torch.bfloat16): (25, 2**19),
    ("transpose", torch.bfloat16): (25, 2**19),
    ("weights", torch.bfloat16): (64, 2**15),
}
INTEL_ONLY = {("convolve", torch.float32), ("transpose", torch.float32)}  # on a Zen 4 core oneDNN won both
PART_BYTES = 2**20  # of patches at a time
FEW_ROWS = 1024  # a float32 weight gradient of larger images wins as well while P has at most this many rows


@functools.cache
def _is_intel() -> bool:
    """Tell whether torch's float32 product is as fast as can be: MKL keeps its widest kernels for Intel's CPUs."""
    try:
        with Path("/proc/cpuinfo").open() as stream:
            return "GenuineIntel" in stream.read(4096)
    except OSError:
        return False


@functools.cache
def _multiplies_bf16() -> bool:
    """Tell whether oneDNN has a bfloat16 product here; torch's own is far slower than its convolutions."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def onednn_takes(image: Tensor) -> bool:
    """Tell whether oneDNN applies an activation in the pass of a convolution of this image as it lies."""
    if image.device.type != "cpu" or not torch.backends.mkldnn.enabled or not image.is_contiguous(memory_format=LAST):
        return False
    return image.dtype == torch.float32 or (image.dtype == torch.bfloat16 and _multiplies_bf16())


def pays(kind: str, image: Tensor, pixels: int, weight_shape: torch.Size) -> bool:
    """Tell whether ``kind`` ("convolve", "transpose", "weights") of a dense image is better done as a product.

    ``pixels`` are those of Y a sample. Never outside the CPU, and never where the core is absent or switched off.
    """
    limits = PAYS.get((kind, image.dtype))
    if (kind, image.dtype) in INTEL_ONLY and not _is_intel():
        return False
    if limits is None or image.device.type != "cpu" or image.ndim != 4 or not image.numel():
        return False
    few = kind == "weights" and len(image) * pixels <= FEW_ROWS and pixels <= 64
    if (pixels > limits[0] and not few) or weight_shape.numel() < limits[1] or _extension.problem():
        return False
    if _choice.resolve("auto") == "reference" or image.is_contiguous():
        return False  # planes would have to be turned round first
    return image.dtype != torch.bfloat16 or _multiplies_bf16()


def _small_size(big: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    sides = zip(big.shape[2:], weight.shape[2:], stride, padding, strict=True)
    height, width = ((side + 2 * pad - kernel) // step + 1 for side, kernel, step, pad in sides)
    return height, width


# --- the three -------------------------------------------------------------------------------------------------------


def _slices(samples: int, row_bytes: int) -> list[slice]:
    """Cut a batch so that the patches of a part stay in the cache, and never take much memory."""
    each = max(1, PART_BYTES // row_bytes)
    return [slice(start, start + each) for start in range(0, samples, each)]


def _sample_bytes(weight_shape: torch.Size, pixels: int, image: Tensor) -> int:
    return pixels * weight_shape[1:].numel() * image.element_size()


def convolve(big: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor | None:
    """Y = conv2d(X, w) + bias."""
    size = _small_size(big, weight, stride, padding)
    if not pays("convolve", big, size[0] * size[1], weight.shape):
        return None
    small = big.new_empty(len(big), *size, len(weight))
    matrix = _matrix(weight).t()
    for part in _slices(len(big), _sample_bytes(weight.shape, size[0] * size[1], big)):
        patches = _unfold(big[part], weight.shape, size, stride, padding).flatten(0, 2)
        torch.mm(patches, matrix, out=small[part].flatten(0, 2))
        del patches  # before the next ones are made
    return _image(small if bias is None else small.add_(bias))


def transpose(small: Tensor, weight: Tensor, big_size: Pair, stride: Pair, padding: Pair) -> Tensor | None:
    """X = conv_transpose2d(Y, w), of the given size: the gradient of a convolution in its input."""
    if not pays("transpose", small, small.shape[2] * small.shape[3], weight.shape):
        return None
    rows, matrix = _rows(small), _matrix(weight)
    shape = (len(small), weight.shape[1], *big_size)
    big = torch.empty(shape, dtype=small.dtype, memory_format=LAST)
    for part in _slices(len(small), _sample_bytes(weight.shape, rows.shape[1] * rows.shape[2], small)):
        patches = (rows[part].flatten(0, 2) @ matrix).unflatten(0, rows[part].shape[:3])
        _fold(patches, big[part], weight.shape, stride, padding)
        del patches
    return big


def weight_gradient(big: Tensor, small: Tensor, weight_shape: torch.Size, stride: Pair, padding: Pair) -> Tensor | None:
    """dw for the gradient Y of conv2d(X, w), or the gradient X of conv_transpose2d(Y, w)."""
    pixels = small.shape[2] * small.shape[3]
    if not pays("weights", small, pixels, weight_shape):
        return None
    rows, size = _rows(small), tuple(small.shape[2:])
    # 16-bit sums are rounded once: in one product
    whole = small.dtype != torch.float32
    parts = [slice(None)] if whole else _slices(len(small), _sample_bytes(weight_shape, pixels, small))
    found = None
    for part in parts:
        patches = _unfold(big[part], weight_shape, size, stride, padding).flatten(0, 2)
        left = rows[part].flatten(0, 2).t()
        found = left @ patches if found is None else found.addmm_(left, patches)
        del patches
    return _image(found.reshape(weight_shape[0], *weight_shape[2:], weight_shape[1]))


def completed(
    found: tuple[Tensor | None, Tensor | None], wanted: tuple[bool, bool], gz: Tensor, x: Tensor, weight: Tensor, *how
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and of the weight: those ``found``, and what else is ``wanted`` by torch.

    ``how`` is stride, padding, dilation, whether transposed, and output padding. Torch is never asked for the bias's
    gradient as well: it would compute the weight's for its sake.
    """
    mask = [want and ours is None for want, ours in zip(wanted, found, strict=True)]
    if not any(mask):
        return found
    others = torch.ops.aten.convolution_backward.default(gz, x, weight, None, *how, 1, [*mask, False])
    gx, gw = (theirs if ours is None else ours for ours, theirs in zip(found, others[:2], strict=True))
    return gx, gw
