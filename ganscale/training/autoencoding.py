"""The phase of an autoencoder: one network that encodes and decodes, no critic, in the ordinary step.

Legend: N samples of this rank, D latent, x images [N, C, H, W].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.config import RunConfig
from ganscale.data import Dataset, to_float
from ganscale.losses import AUTOENCODING, divergence, squared_error
from ganscale.metrics import psnr, ssim
from ganscale.metrics.image_quality import WINDOW
from ganscale.training.step import Phase, StepContext, build_phases

SSIM_EVERY = 8  # one image in so many is judged: the windows cost as much as a small encoder


def phases_of(config: RunConfig) -> list[Phase]:
    """Return the phases of a run, adversarial or not, in the order in which they take turns."""
    return _autoencoding_phases(config) if config.loss.name in AUTOENCODING else build_phases(config)


def _autoencoding_phases(config: RunConfig) -> list[Phase]:
    def autoencoder_loss(step: StepContext) -> Tensor:
        # min E[ |x - dec(enc(x))|^2 / 2 ];  with a distribution q(z|x) the negative evidence bound
        # E_q[ |x - dec(z)|^2 / 2 ] + beta KL(q(z|x) || N(0, I)), z = mean + std eps  (Kingma and Welling 2014, eq. 10)
        net = step.state.nets["generator"]
        with step.autocast():
            mean, log_variance = net.distribution(step.real)
            code = mean
            if log_variance is not None:
                eps = step.draws.normal(f"{step.phase}/eps", step.first_slot, len(step.real), net.latent)
                code = mean + (0.5 * log_variance).exp() * eps.to(mean.dtype)
            decoded = net(code).to(step.real.dtype)
        term = squared_error(decoded, step.real)
        _report_quality(step, decoded, term)
        if log_variance is not None:
            apart = divergence(mean.to(term.dtype), log_variance.to(term.dtype))
            step.report("loss/divergence", apart)
            term = term + config.loss.beta * apart
        step.report("loss/autoencoder", term)
        return term

    return [Phase(name="autoencoder", net="generator", every=1, term=autoencoder_loss)]


def shown_images(config: RunConfig, dataset: Dataset) -> Tensor | None:
    """Return the images [n, C, H, W] in [-1, 1] whose reconstructions a run shows; None for one that draws samples.

    Half of ``sample.num``, as each stands beside its reconstruction; spread over the data, the same for all of a run.
    """
    if config.loss.name not in AUTOENCODING or dataset.kind != "image":
        return None
    count = min(len(dataset), -(-config.sample.num // 2))
    return to_float(dataset.read(np.linspace(0, len(dataset) - 1, count).astype(np.int64))[0])


@torch.no_grad()
def beside_reconstructions(net: nn.Module, shown: Tensor, device: torch.device) -> Tensor:
    """Return each image of ``shown`` followed by what ``net`` decodes of its code, [2n, C, H, W] on the CPU."""
    decoded = [net(net.encode(part.to(device))).float().cpu() for part in shown.split(64)]
    return torch.stack([shown, torch.cat(decoded).clamp(-1, 1)], dim=1).flatten(0, 1)


@torch.no_grad()
def _report_quality(step: StepContext, decoded: Tensor, error: Tensor) -> None:
    step.report("loss/reconstruction", error)
    real, decoded = step.real.float(), decoded.detach().float().clamp(-1, 1)
    if step.real.shape[1] == 2:  # points of the plane
        return
    ratio = psnr(decoded, real, check_values=False)  # they are in [-1, 1], and nothing here may wait for a GPU
    step.report("quality/psnr", ratio.clamp_max(100))  # an exact copy has no finite one
    if min(real.shape[2:]) >= WINDOW:
        every = min(SSIM_EVERY, step.state.config.train.batch)
        place = step.first_slot - step.state.images  # in the global batch: a CUDA graph keeps what it was recorded with
        chosen = slice(-place % every, None, every)  # those of one process, for any number of ranks and passes
        judged = decoded[chosen], real[chosen]
        similar = ssim(*judged, check_values=False) if len(judged[0]) else real.new_zeros(0)
        step.report("quality/ssim", similar)  # by every rank, also of none: all must know the same names
