"""How close is an image to its reference: PSNR, SSIM and MS-SSIM, one number a sample.

N batch, C channels, H height, W width. Images are floats; ``data_range`` is the width of the value range (2 for
[-1, 1]). SSIM's luminance term depends on where zero lies, so values of [-1, 1] and of [0, 1] images are not the same
number: compare only values that were computed in one range.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ganscale.errors import UserError

WINDOW = 11  # taps: a Gaussian of sigma 1.5 cut at 3.5 sigma, as in Wang et al. 2004
SIGMA = 1.5
K1, K2 = 0.01, 0.03
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, table of section 3.2
RANGE_SLACK = 1e-4  # rounding that we let pass before a value counts as out of range


def psnr(image: Tensor, reference: Tensor, *, data_range: float = 2.0, check_values: bool = True) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``[N]``; infinite where an image equals its reference.

    ``image`` and ``reference`` are float ``[N, C, H, W]`` within a range of width ``data_range``; the squared error is
    averaged over C, H and W of each sample. Raises ``UserError`` for other dtypes, shapes or ranges. Looking at the
    values waits for the device; ``check_values=False``, for images known to lie in the range, never waits.
    """
    image, reference = _checked_pair(image, reference, data_range if check_values else None)
    mse_N = (image - reference).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / mse_N)


def ssim(image: Tensor, reference: Tensor, *, data_range: float = 2.0, check_values: bool = True) -> Tensor:
    """Structural similarity, ``[N]``, at most 1 (Wang et al. 2004, eq. 13).

    Gaussian window of 11 taps and sigma 1.5, covariances without the n/(n-1) factor, mean over the positions where the
    window fits and over channels: scikit-image's ``structural_similarity`` with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False``. Raises ``UserError`` for images below 11 pixels a side, other dtypes or ranges.
    ``check_values`` as for ``psnr``.
    """
    image, reference = _checked_pair(image, reference, data_range if check_values else None)
    _refuse_small(image, "SSIM", WINDOW, "enlarge the images first, or use psnr")
    similarity_NC, _ = _ssim_terms(image, reference, data_range)
    return similarity_NC.mean(1)


def ms_ssim(
    image: Tensor, reference: Tensor, *, data_range: float = 2.0, weights: Sequence[float] = MS_SSIM_WEIGHTS
) -> Tensor:
    """Multi-scale structural similarity, ``[N]`` in [0, 1] (Wang, Simoncelli and Bovik 2003, eq. 7).

    Each scale halves the image by 2x2 averages; ``weights`` has one exponent a scale, finest first. Negative terms
    count as 0, since their fractional powers do not exist. With five scales an image needs more than 160 pixels a
    side, otherwise ``UserError``; so do other dtypes, shapes or ranges.
    """
    image, reference = _checked_pair(image, reference, data_range)
    if len(weights) == 0:
        raise UserError("weights of MS-SSIM", "hold one exponent a scale", "none", "leave them out for the usual five")
    smallest = (WINDOW - 1) * 2 ** (len(weights) - 1) + 1
    _refuse_small(
        image, f"MS-SSIM of {len(weights)} scales", smallest, "enlarge the images, pass fewer weights, or use ssim"
    )
    terms_SNC = []
    for scale in range(len(weights)):
        similarity_NC, contrast_NC = _ssim_terms(image, reference, data_range)
        is_last = scale == len(weights) - 1
        terms_SNC.append((similarity_NC if is_last else contrast_NC).clamp_min(0))
        image, reference = _halved(image), _halved(reference)
    exponents_S11 = torch.tensor(weights, dtype=image.dtype, device=image.device)[:, None, None]
    return (torch.stack(terms_SNC) ** exponents_S11).prod(0).mean(1)


def _ssim_terms(image: Tensor, reference: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Return the mean similarity and the mean contrast-structure term, each ``[N, C]``."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_x, mean_y = _blurred(image), _blurred(reference)
    variance_x = _blurred(image * image) - mean_x * mean_x
    variance_y = _blurred(reference * reference) - mean_y * mean_y
    covariance = _blurred(image * reference) - mean_x * mean_y
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return (luminance * contrast).flatten(2).mean(2), contrast.flatten(2).mean(2)


def _blurred(x_NCHW: Tensor) -> Tensor:
    """Filter with the Gaussian window, only where it fits: ``[N, C, H-10, W-10]``."""
    offsets = torch.arange(WINDOW, dtype=x_NCHW.dtype, device=x_NCHW.device) - WINDOW // 2
    taps = torch.exp(-offsets.square() / (2 * SIGMA**2))
    taps = taps / taps.sum()
    flat = x_NCHW.reshape(-1, 1, *x_NCHW.shape[2:])
    flat = F.conv2d(F.conv2d(flat, taps[None, None, :, None]), taps[None, None, None, :])
    return flat.reshape(*x_NCHW.shape[:2], *flat.shape[2:])


def _halved(x_NCHW: Tensor) -> Tensor:
    # An odd side is padded by one zero at either end, as the widely used PyTorch implementation does.
    return F.avg_pool2d(x_NCHW, 2, padding=(x_NCHW.shape[2] % 2, x_NCHW.shape[3] % 2))


def _checked_pair(image: Tensor, reference: Tensor, data_range: float | None) -> tuple[Tensor, Tensor]:
    """Both as floats of at least 32 bits; without a ``data_range`` their values are not looked at."""
    if image.shape != reference.shape or image.ndim != 4:
        got = f"{list(image.shape)} and {list(reference.shape)}"
        raise UserError("image and reference", "be two [N, C, H, W] tensors of one shape", got, "resize or stack them")
    if not (image.is_floating_point() and reference.is_floating_point()):
        got = f"{image.dtype} and {reference.dtype}"
        raise UserError("image and reference", "be floating point", got, "bring uint8 to [-1, 1] by x / 127.5 - 1")
    for tensor in () if data_range is None else (image, reference):
        low, high = (float(v) for v in tensor.detach().aminmax()) if tensor.numel() else (0.0, 0.0)
        if not high - low <= data_range * (1 + RANGE_SLACK):
            raise UserError(
                "image values", f"span at most data_range={data_range:g}", f"{low:g} to {high:g}", "pass the range"
            )
    dtype = torch.promote_types(torch.promote_types(image.dtype, reference.dtype), torch.float32)
    return image.to(dtype), reference.to(dtype)


def _refuse_small(image: Tensor, name: str, smallest: int, remedy: str) -> None:
    height, width = image.shape[2:]
    if min(height, width) < smallest:
        raise UserError(f"images for {name}", f"be at least {smallest}x{smallest} pixels", f"{height}x{width}", remedy)
