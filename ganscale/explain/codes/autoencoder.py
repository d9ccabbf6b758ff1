"""What survives an encoder's few numbers: reconstruction and error beside principal components of equal size.

Of a generator's samples it tells what the generator learned: how few numbers hold its images, and what is lost first.

Legend: N samples, M samples judged, n of a chunk, D numbers of a code, C channels, H height, W width.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ganscale.explain.base import Explainer, Meter, Options
from ganscale.explain.errors import CallableError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import against_control
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation
from ganscale.metrics import psnr, ssim
from ganscale.metrics.image_quality import WINDOW

A_CHUNK = 32
REAL, HELD_OUT = 512, 128
SHOWN = 8
PICTURE = 32  # pixels
BEST_PSNR = 100.0  # dB; an exact copy has no finite one


class AutoencoderOptions(Options):
    """What is set beside the code."""

    components: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="principal components beside the code; 0: as many as it has numbers"
    )


class AutoencoderExplainer(Explainer):
    """Reconstruction, error and map of codes, beside the mean image and principal components of equal size."""

    name = "autoencoder"
    summary = "what an autoencoder keeps of images: reconstruction, error and codes beside PCA of equal size"
    Options = AutoencoderOptions
    options: AutoencoderOptions
    primary = ("psnr",)
    needs = ("encoder",)
    beside = MappingProxyType({"real": REAL, "held_out": HELD_OUT})

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        inputs = request.inputs
        self.judged = inputs.get("held_out", inputs["x"])
        self.reference = inputs.get("real", inputs["x"])
        self.labels = inputs.get("held_out_labels") if "held_out" in inputs else inputs.get("labels")

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk for every few images."""
        if previous is not None:
            return []
        starts = range(0, len(self.judged), A_CHUNK)
        return [Chunk(round=0, index=index, explanation=start, part=0) for index, start in enumerate(starts)]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Encode and decode a few images."""
        x = self.judged[chunk.explanation : chunk.explanation + A_CHUNK]
        code = encode(self.subject.encoder, x, meter)
        meter.rows_forward += len(x)
        with torch.no_grad():
            decoded = self.subject.encoder(code.to(self.subject.device)).cpu()
        if decoded.shape != x.shape:
            got = f"{tuple(decoded.shape)} of {tuple(x.shape)}"
            raise CallableError(
                "the decoder", "return images like those encoded", got, "explain images of its own size"
            )
        found = {"code": code.double().numpy(), **_quality(decoded, x)}
        if chunk.explanation < SHOWN:
            found["decoded"] = decoded[: SHOWN - chunk.explanation]
        return found

    def finish(self, partial: Partial) -> Explanation:
        """Put the images together; score against the mean image and against principal components."""
        found = [data for _, _, data in partial.of_round(0)]
        codes_MD = np.concatenate([data["code"] for data in found])
        kept = self.options.components or codes_MD.shape[1]
        mean, basis = principal_components(self.reference, kept)
        by_pca = _project(self.judged, mean, basis)
        rivals = {"": mean.expand_as(self.judged), "_against_pca": by_pca}
        mine = {key: np.concatenate([data[key] for data in found]) for key in ("psnr", "ssim") if key in found[0]}
        theirs = {suffix: _quality(images, self.judged) for suffix, images in rivals.items()}
        scores = {
            f"{key}{suffix}": against_control(mine[key], theirs[suffix][key], better="higher")
            for key in mine
            for suffix in rivals
        }
        share_D, code_map_M2 = _code_map(codes_MD)
        shown = min(SHOWN, len(self.judged))
        values = {
            "reconstruction": torch.cat([data["decoded"] for data in found if "decoded" in data]),
            "pca_reconstruction": by_pca[:shown],
            "reconstructed": self.judged[:shown],
            "mean_image": mean,
            "codes": torch.from_numpy(codes_MD),
            "code_images": small_pictures(self.judged),
            "code_map": torch.from_numpy(code_map_M2),
            "code_share": torch.from_numpy(share_D),
            **{f"{key}_of_each": torch.from_numpy(value) for key, value in mine.items()},
        }
        if self.labels is not None:
            values["code_labels"] = self.labels
        kept_inputs = {"x", "generated", "labels"}
        return self.explanation(
            partial,
            values=values,
            inputs={key: tensor for key, tensor in self.request.inputs.items() if key in kept_inputs},
            scores=scores,
            meta={
                "code": codes_MD.shape[1],
                "components": kept,
                "judged": len(self.judged),
                "fitted_on": len(self.reference),
            },
        )


def encode(encoder: Any, x: Tensor, meter: Meter) -> Tensor:
    """Return ``encoder.encode`` of x [n, D] on the CPU, in micro-batches, counted."""
    meter.rows_forward += len(x)
    with torch.no_grad():
        parts = [encoder.encode(part.to(meter.device)).cpu() for part in x.split(meter.micro_batch)]
    code = torch.cat(parts)
    if code.ndim != 2 or len(code) != len(x) or not torch.isfinite(code).all():
        raise CallableError("the encoder", "return finite codes [n, D]", tuple(code.shape), "look at its weights")
    return code


def small_pictures(x: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8, at most ``PICTURE`` pixels a side: they stand for their codes."""
    step = max(1, -(-max(x.shape[2:]) // PICTURE))
    shrunk = torch.nn.functional.avg_pool2d(x.float(), step, ceil_mode=True) if step > 1 else x.float()
    return ((shrunk + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def principal_components(x: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return the mean image [1, ...] and the leading components [K, P] of images, by singular values in float64."""
    flat = x.double().flatten(1)
    mean = flat.mean(dim=0, keepdim=True)
    basis = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:kept]
    return mean.to(x.dtype).reshape(1, *x.shape[1:]), basis


def _project(x: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    away = (x.double() - mean.double()).flatten(1)
    return (mean.double() + (away @ basis.T @ basis).reshape(x.shape)).to(x.dtype)


def _quality(images: Tensor, truth: Tensor) -> dict[str, np.ndarray]:
    low, high = min(-1.0, float(truth.min())), max(1.0, float(truth.max()))
    images = images.clamp(low, high)
    found = {"psnr": psnr(images, truth, data_range=high - low).clamp_max(BEST_PSNR).double().numpy()}
    if min(truth.shape[2:]) >= WINDOW:
        found["ssim"] = ssim(images, truth, data_range=high - low).double().numpy()
    return found


def _code_map(codes_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the codes' variance along each of their principal axes [D], and the first two [M, 2]."""
    centred = codes_MD - codes_MD.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # a sign of its own has no axis
    power = singular**2
    first = (left * singular * signs)[:, :2]
    return power / max(power.sum(), 1e-300), np.pad(first, ((0, 0), (0, 2 - first.shape[1])))
