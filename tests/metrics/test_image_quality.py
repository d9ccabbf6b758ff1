"""Laws of PSNR, SSIM and MS-SSIM, and their agreement with scikit-image and pytorch-msssim."""

from __future__ import annotations

import pytest
import torch
from pytorch_msssim import ms_ssim as peer_ms_ssim
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ganscale.errors import UserError
from ganscale.metrics import ms_ssim, psnr, ssim

MEASURES = {"psnr": (psnr, 32), "ssim": (ssim, 32), "ms_ssim": (ms_ssim, 176)}


def pair(shape: tuple[int, ...], *, noise: float = 0.2, dtype: torch.dtype = torch.float32) -> tuple:
    """Smooth pictures in [-1, 1] and noisy copies of them."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(*shape[:2], 6, 6, generator=generator, dtype=dtype) * 2 - 1
    clean = torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear", align_corners=True)
    noisy = clean + noise * torch.randn(shape, generator=generator, dtype=dtype)
    return noisy.clamp(-1, 1), clean


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 33, 47), (1, 1, 11, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_equals_scikit_image_with_gaussian_weights(shape: tuple[int, ...], dtype: torch.dtype):
    noisy, clean = pair(shape, dtype=dtype)
    expected = [
        structural_similarity(
            x.numpy(),
            y.numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=2,
            channel_axis=0,
        )
        for x, y in zip(noisy, clean, strict=True)
    ]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10  # rounding of the two orders of filtering
    assert ssim(noisy, clean).tolist() == pytest.approx(expected, abs=tolerance)


def test_ssim_equals_scikit_image_on_garments_in_their_own_range(garments):
    x, y = garments.images[:8].float(), garments.images[8:16].float()
    expected = [
        structural_similarity(
            a[0].numpy(), b[0].numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert ssim(x, y, data_range=255).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 5, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_psnr_equals_scikit_image(shape: tuple[int, ...], dtype: torch.dtype):
    noisy, clean = pair(shape, dtype=dtype)
    expected = [peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=2) for x, y in zip(noisy, clean, strict=True)]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10  # dB; a float32 mean is known to 1e-6 of itself
    assert psnr(noisy, clean).tolist() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("shape", [(2, 1, 161, 176), (2, 3, 199, 230)])
def test_ms_ssim_equals_pytorch_msssim_on_even_and_odd_sides(shape: tuple[int, ...]):
    noisy, clean = pair(shape)
    expected = peer_ms_ssim(noisy, clean, data_range=2, size_average=False)
    assert ms_ssim(noisy, clean).tolist() == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", MEASURES)
def test_more_noise_scores_lower_and_each_sample_stands_alone(name: str):
    measure, side = MEASURES[name]
    little, clean = pair((3, 1, side, side), noise=0.05)
    much, _ = pair((3, 1, side, side), noise=0.5)
    assert (measure(much, clean) < measure(little, clean)).all()
    alone = torch.cat([measure(x[None], y[None]) for x, y in zip(much, clean, strict=True)])
    assert torch.allclose(measure(much, clean), alone, atol=1e-6)  # float32 sums in another order


def test_an_image_equals_itself():
    _, clean = pair((2, 3, 176, 176))
    assert psnr(clean, clean).tolist() == [float("inf")] * 2
    assert ssim(clean, clean).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert ms_ssim(clean, clean).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_ssim_and_ms_ssim_have_finite_gradients_that_improve_the_image():
    for measure, side in ((ssim, 32), (ms_ssim, 176)):
        noisy, clean = pair((1, 1, side, side))
        noisy.requires_grad_(True)
        before = measure(noisy, clean)
        (gradient,) = torch.autograd.grad(before.sum(), noisy)
        assert gradient.isfinite().all()
        assert (measure((noisy + 10 * gradient).clamp(-1, 1), clean) > before).all()


@pytest.mark.parametrize(("measure", "side", "smallest"), [(ssim, 10, "11x11"), (ms_ssim, 160, "161x161")])
def test_images_too_small_for_the_window_are_refused_with_the_size_that_works(measure, side: int, smallest: str):
    x = torch.zeros(1, 1, side, 200)
    with pytest.raises(UserError, match=f"at least {smallest} pixels, got {side}x200"):
        measure(x, x)


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim])
def test_wrong_dtype_shape_and_range_are_refused(measure):
    x = torch.zeros(2, 1, 170, 170)
    with pytest.raises(UserError, match="floating point"):
        measure(x.to(torch.uint8), x.to(torch.uint8))
    with pytest.raises(UserError, match="one shape"):
        measure(x, x[:1])
    for bad in (255.0, float("nan")):
        wrong = x.clone()
        wrong[0, 0, 0, 0] = bad
        with pytest.raises(UserError, match="span at most data_range=2"):
            measure(x, wrong)
