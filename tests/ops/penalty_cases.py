"""Critics for the tests of the gradient penalty, and the comparison with plain automatic differentiation.

A case is (critic, shape of one sample); critics are float64 and their weights come from a fixed seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ganscale import ops

KINDS = ["two-sided", "one-sided", "zero"]


def options_of(kind, critic, x):
    """Arguments of a penalty whose center lies amid the norms, so that a one-sided one takes some and leaves some."""
    if kind == "zero":
        return {"center": 0.0}
    norms = ops.gradient_penalty(critic, x, center=0.0, impl="reference").detach().sqrt()
    return {"center": norms.mean().item(), "one_sided": kind == "one-sided"}


class Residual(nn.Module):
    """Two convolutions beside an average-pooled shortcut, as in a ResNet critic."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(wide, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(wide, out, 1)
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))
        return (F.avg_pool2d(h, 2) * self.gain + self.shortcut(F.avg_pool2d(x, 2))) / 2**0.5


class Projection(nn.Module):
    """The projection critic of Miyato and Koyama 2018: psi(h) + <embed(y), h>."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed, self.psi = nn.Conv2d(2, 6, 3, stride=2), nn.Embedding(5, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.conv(x)).sum((2, 3))
        return self.psi(h).squeeze(1) + (h * self.embed(y)).sum(1)


class TwoHeads(nn.Module):
    """A trunk that is read twice: logits of patches and of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(2, 5, 4, 2, 1), nn.LeakyReLU(0.2))
        self.patch, self.whole = nn.Conv2d(5, 1, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return torch.cat([self.patch(h).flatten(1), self.whole(h.mean(dim=(2, 3)))], dim=1)


class Shared(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.conv(x)))).flatten(1).sum(1)


class Aliases(nn.Module):
    """A value that is read through views and by activations, in an order in which nothing may be overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 4, 3), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        flat = h.flatten(1)
        a = F.relu(h).mean((1, 2, 3))
        same = x.reshape(x.shape)
        b = F.leaky_relu(self.linear(F.leaky_relu(flat, 0.3)), 0.2).sum(1)
        return a + b + F.relu(same).sum((1, 2, 3)) + F.relu(x + 0.0).flatten(1).mean(1)


class Excitation(nn.Module):
    """Values that are spread over an image when they are added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pooled = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pooled(F.adaptive_avg_pool2d(x, 1)) + self.conv(x)
        return F.relu(h).flatten(1).sum(1)


class Parts(nn.Module):
    """Parts of values, reordered, shuffled, resampled and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.signal, self.out = nn.Conv2d(8, 6, 3), nn.Conv1d(12, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(F.pixel_unshuffle(x, 2)))
        left, right = h[:, :2, :, 1:], h.narrow(1, 2, 2)[..., :-1]
        h = torch.cat([left - right, h[:, -2:, :3].transpose(2, 3), left], 1)
        h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
        h = F.leaky_relu(F.avg_pool2d(h, 2, ceil_mode=True), 0.3).permute(0, 2, 3, 1).contiguous().flatten(1, 2)
        s = F.avg_pool1d(F.leaky_relu(self.signal(h), 0.2), 2)
        whole = F.pixel_shuffle(torch.cat([x, x], 1), 2).mean((1, 2, 3)).unsqueeze(1)
        return self.out(s.sum(-1)) + x[:, 0, 1].mean(-1, keepdim=True) + whole


class Arithmetic(nn.Module):
    """Sums, differences, products with numbers and weights, paddings and joints."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 4, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(2, 1, 1) + 0.5), nn.Parameter(torch.randn(1, 4, 1, 1))
        self.plane = nn.Parameter(torch.randn(1, 1, 6, 6))
        self.out = nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([2 * x - 1, x * self.scale, self.plane.expand(len(x), -1, -1, -1)], 1)
        h = F.relu(self.conv(F.pad(h, (1, 0, 2, 1))) + self.shift)
        h = h - 0.5 * h.mean((2, 3), keepdim=True)
        h += F.leaky_relu(-h, 0.1).clone()
        return (h.sum((-1, -2)) / self.scale.sum() @ self.out).squeeze(-1)


def _stack(*convs, slope=0.2, inplace=False):
    layers = []
    for conv in convs:
        layers += [conv, nn.LeakyReLU(slope, inplace=inplace) if slope else nn.ReLU(inplace=inplace)]
    return nn.Sequential(*layers[:-1], nn.Flatten())


def _mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.LeakyReLU(0.1), nn.Linear(8, 1)
    )


def _spectral():
    return nn.Sequential(
        spectral_norm(nn.Conv2d(2, 6, 4, 2, 1)), nn.ReLU(), spectral_norm(nn.Conv2d(6, 6, 3)), nn.ReLU(),
        nn.Flatten(), spectral_norm(nn.Linear(96, 1)),
    )  # fmt: skip


class BiasAct(nn.Module):
    """act(x + b) by our operator."""

    def __init__(self, channels, activation):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.activation = activation

    def forward(self, x):
        return ops.bias_act(x, self.bias, activation=self.activation)


def _bias_acts():
    return nn.Sequential(
        nn.Conv2d(3, 5, 4, 2, 1, bias=False), BiasAct(5, "leaky_relu"), nn.Conv2d(5, 7, 3, bias=False),
        BiasAct(7, "relu"), BiasAct(7, "linear"), nn.Flatten(), nn.LazyLinear(1),
    )  # fmt: skip


def _upsampling():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, stride=2),
        nn.ReLU(), nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), nn.LeakyReLU(0.3),
        nn.Upsample(size=5), nn.AdaptiveAvgPool2d((2, 3)), nn.Dropout(0.5).eval(), nn.Unflatten(1, (3, 1)),
        nn.Flatten(), nn.Identity(), nn.LazyLinear(2),
    )  # fmt: skip


def _signals():
    return nn.Sequential(
        nn.Conv1d(2, 4, 5, stride=2, padding="valid"), nn.LeakyReLU(0.2),
        nn.ConvTranspose1d(4, 4, 4, stride=2, groups=2),
        nn.ReLU(), nn.Conv1d(4, 1, 3, padding="same", dilation=2),
    )  # fmt: skip


def _volumes():
    return nn.Sequential(
        nn.Conv3d(1, 3, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv3d(3, 2, 2, groups=1), nn.ReLU(),
        nn.AvgPool3d(2), nn.Flatten(), nn.LazyLinear(1),
    )  # fmt: skip


def _residuals():
    return nn.Sequential(Residual(3, 6), Residual(6, 4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))


def k4(side, slope=0.2, inplace=False):
    """Three strided 4 x 4 convolutions."""

    def build():
        convs = nn.Conv2d(3, 6, 4, 2, 1), nn.Conv2d(6, 8, 4, 2, 1), nn.Conv2d(8, 1, 4, 2, 1)
        return _stack(*convs, slope=slope, inplace=inplace)

    return build, (3, side, side)


CASES = {
    "k4s2p1-16": k4(16),
    "k4s2p1-17": k4(17),
    "k4s2p1-18": k4(18),
    "relu": k4(16, slope=0.0),
    "in-place": k4(16, inplace=True),
    "k3s1p1": (lambda: _stack(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 5, 3, 1, 1), nn.Conv2d(5, 1, 3)), (3, 7, 9)),
    "k5s2": (lambda: _stack(nn.Conv2d(2, 4, 5, 2), nn.Conv2d(4, 4, 5, 2), nn.Conv2d(4, 1, 1)), (2, 18, 17)),
    "groups": (lambda: _stack(nn.Conv2d(4, 8, 3, dilation=2, groups=2), nn.Conv2d(8, 8, 3, groups=8)), (4, 9, 9)),
    "mlp": (_mlp, (3, 2, 2)),
    "linear": (lambda: nn.Linear(5, 1), (5,)),
    "spectral-norm": (_spectral, (2, 12, 12)),
    "bias-act": (_bias_acts, (3, 9, 11)),
    "residual": (_residuals, (3, 12, 12)),
    "upsampling": (_upsampling, (2, 7, 7)),
    "two-heads": (TwoHeads, (2, 10, 12)),
    "shared": (Shared, (3, 6, 5)),
    "arithmetic": (Arithmetic, (2, 6, 6)),
    "aliases": (Aliases, (2, 5, 5)),
    "excitation": (Excitation, (2, 5, 5)),
    "parts": (Parts, (2, 12, 12)),
    "signals": (_signals, (2, 21)),
    "volumes": (_volumes, (1, 9, 8, 7)),
}


def case(name, samples=4):
    """Build the case ``name``: a critic and a batch."""
    build, shape = CASES[name]
    torch.manual_seed(0)
    critic = build().double()
    x = torch.randn(samples, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        critic(x)  # lets lazy layers find their size
    return seeded_biases(critic), x


def seeded_biases(critic):
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return critic


def penalty_and_gradients(critic, x, impl, parameters, **options):
    """Return [N] penalties, and the gradient of a weighted sum of them in each of ``parameters``, zeros for none."""
    penalty = ops.gradient_penalty(critic, x, impl=impl, **options)
    weights = torch.linspace(0.5, 2, len(penalty), dtype=penalty.dtype, device=penalty.device)
    found = torch.autograd.grad((penalty * weights).sum(), parameters, allow_unused=True)
    return penalty.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def assert_same(ours, plain, tolerance=1e-12):
    """Compare penalties and gradients, relative to the largest entry of each tensor."""
    for a, b in zip([ours[0], *ours[1]], [plain[0], *plain[1]], strict=True):
        largest = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(largest, 1e-30))
