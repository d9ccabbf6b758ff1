"""What everybody would write without this package: plain torch modules, the textbook penalty, its compiled form.

Nothing here uses ganscale's operators, so that a peer cannot become faster or slower with them.
Legend: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

SLOPE = 0.2


def widths(side: int) -> list[int]:
    """Return the channels of the critic for ``side`` x ``side`` RGB pictures: DCGAN's, down to 4 x 4."""
    return [3, *(64 << level for level in range((side // 4).bit_length() - 1))]


def plain_critic(side: int) -> nn.Sequential:
    """DCGAN's critic without norms, as modules of torch: [N, 3, side, side] -> [N, 1]."""
    layers: list[nn.Module] = []
    channels = widths(side)
    for narrow, wide in pairwise(channels):
        layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 16, 1))


class PlainGenerator(nn.Module):
    """DCGAN's generator as modules of torch: [N, latent] -> [N, 3, side, side]."""

    def __init__(self, side: int, *, latent: int) -> None:
        super().__init__()
        channels = widths(side)[:0:-1]  # widest first, without the picture's own
        self.project = nn.Linear(latent, channels[0] * 16, bias=False)
        self.widest = channels[0]
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)]
        for wide, narrow in pairwise(channels):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], 3, 4, stride=2, padding=1), nn.Tanh())

    def forward(self, z_ND: Tensor) -> Tensor:
        return self.body(self.project(z_ND).unflatten(1, (self.widest, 4, 4)))


def textbook_penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(|grad D(x)| - 1)^2, [N], as in most implementations of WGAN-GP."""
    x = x.detach().requires_grad_()
    logits = critic(x)
    total = logits.float().sum() if logits.dtype == torch.bfloat16 else logits.sum()
    (g,) = torch.autograd.grad(total, x, create_graph=True)
    return (g.flatten(1).norm(dim=1) - 1).square()


def functional_penalty_gradient(critic: nn.Module) -> Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]]:
    """Return d mean(penalty) / d parameters as torch.func writes it, which torch.compile can take as one graph."""

    def value(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        def total(x: Tensor) -> Tensor:
            return torch.func.functional_call(critic, parameters, (x,)).sum()

        g = torch.func.grad(total)(x)
        return (g.flatten(1).norm(dim=1) - 1).square().mean()

    return torch.func.grad(value)


class _PiecewiseLinear(torch.autograd.Function):
    """LeakyReLU whose second derivative is not there at all, rather than a tensor of zeros."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        y = torch.nn.functional.leaky_relu(x, SLOPE)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gy: Tensor | None) -> Tensor | None:
        return None if gy is None else _MaskedScale.apply(gy, *ctx.saved_tensors)


class _MaskedScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gy: Tensor, y: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y)
        return torch.ops.aten.leaky_relu_backward(gy, y, SLOPE, True)

    @staticmethod
    def backward(ctx, ggx: Tensor | None) -> tuple[Tensor | None, None]:
        return (None if ggx is None else _MaskedScale.apply(ggx, *ctx.saved_tensors)), None


class _PiecewiseLinearModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _PiecewiseLinear.apply(x)


def without_zero_terms(critic: nn.Sequential) -> nn.Sequential:
    """Return ``critic`` with the same parameters, its LeakyReLUs without the zero second derivative."""
    return nn.Sequential(*(_PiecewiseLinearModule() if isinstance(m, nn.LeakyReLU) else m for m in critic))


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the parameters of ``source``, which has the same ones in the same order."""
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
            assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
            ours.copy_(theirs)
