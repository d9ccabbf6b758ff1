"""Claims about generators: the output layer, batch norm with ReLU, whole up-sampling blocks, the whole trunk.

Every convolution is DCGAN's 4x4 kernel with stride 2 and padding 1. Peers are modules of torch without a bias before
batch norm, as in DCGAN.
Legend: N batch, CI and CO channels in and out, f+b forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ganscale import ops
from ganscale.bench.lines import BY_NAME, LAYOUTS, Case, Line, Settings, compare

CLAIM = "blocks"
EAGER, EAGER_NCHW, COMPILED = "eager", "eager, nchw", "torch.compile"
UP = {"stride": 2, "padding": 1}
LAYERS = ((512, 256, 4), (256, 128, 8), (128, 64, 16))  # CI, CO, side of the input
OUTPUT = (64, 3, 32)
# A ReLU that flips at 0 counts in full: one among millions is a change of 1e-3; 16-bit rounding flips one in 300.
FLIPS = {"f32": 1e-2, "bf16": 0.15}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class PlainBlock(nn.Sequential):
    """Conv-transpose, batch norm, ReLU of torch."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(wide, narrow, 4, bias=False, **UP), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)
        )

    def ours(self, x: Tensor) -> Tensor:
        """Return the same of the same parameters by our operator."""
        conv, norm, _ = self
        return ops.conv_transpose_norm_act(
            x, conv.weight, None, norm.weight, norm.bias, norm.running_mean, norm.running_var,
            training=True, momentum=norm.momentum, eps=norm.eps, activation="relu", impl="fused", **UP,
        )  # fmt: skip


class PlainOutput(nn.Sequential):
    """Conv-transpose to three channels and tanh of torch."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__(nn.ConvTranspose2d(wide, narrow, 4, **UP), nn.Tanh())

    def ours(self, x: Tensor) -> Tensor:
        """Return the same of the same parameters by our operator."""
        conv, _ = self
        return ops.conv_transpose_act(x, conv.weight, conv.bias, activation="tanh", impl="fused", **UP)


class PlainNorm(nn.Sequential):
    """Batch norm and ReLU of torch."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    def ours(self, x: Tensor) -> Tensor:
        """Return the same of the same parameters by our operator."""
        norm, _ = self
        return ops.norm_act(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
            training=True, momentum=norm.momentum, eps=norm.eps, activation="relu", impl="fused",
        )  # fmt: skip


class PlainTrunk(nn.Sequential):
    """512 channels of 4x4 to pictures of 64x64: three blocks and the output layer."""

    def __init__(self) -> None:
        super().__init__(*(PlainBlock(wide, narrow) for wide, narrow, _ in LAYERS), PlainOutput(*OUTPUT[:2]))

    def ours(self, x: Tensor) -> Tensor:
        """Return the same of the same parameters by our operators."""
        for part in self:
            x = part.ours(x)
        return x


def forward(call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], list[Tensor]]:
    """Return the forward pass without a graph as a call without arguments."""

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [call(x)]

    return run


def forward_backward(call: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    """Return forward and backward (to the input and every parameter of ``net``) as a call without arguments.

    ``call`` itself is not run yet: a compiled one may fail.
    """
    leaf = x.detach().requires_grad_()
    with torch.no_grad():
        gy = torch.randn_like(net(leaf))
    wanted = [leaf, *net.parameters()]
    return lambda: list(torch.autograd.grad(call(leaf), wanted, gy))


def lines_of(
    settings: Settings, net: nn.Module, x: Tensor, case: Case, goals: dict[str, float], *, backward: bool
) -> Iterator[Line]:
    """Compare ``net`` in both layouts, compiled, and ours in channels_last."""

    def call(of: Callable[[Tensor], Tensor], x: Tensor = x, net: nn.Module = net) -> Callable[[], list[Tensor]]:
        torch.manual_seed(1)  # the same gy for all
        return forward_backward(of, net, x) if backward else forward(of, x)

    peers = {EAGER: call(net)}
    # on a GPU a compilation takes longer than all measurements: only where it is a goal, and for whole networks
    compiled = settings.device == "cpu" or COMPILED in goals or isinstance(net, PlainTrunk)
    if not settings.quick:
        plain = placed(type(net)(*arguments(net)), x, "nchw")
        peers[EAGER_NCHW] = call(plain, x.contiguous(), plain)
    if compiled and not settings.quick:
        torch.compiler.reset()  # else the limit of recompilations is reached, and the peer is silently eager
        peers[COMPILED] = call(torch.compile(net, dynamic=False))
    ours = call(net.ours)
    judged = {"goals": goals, "tolerance": FLIPS[case.dtype]}
    yield from compare(settings, case, peers=peers, ours=ours, graphs=True, **judged)


def placed(net: nn.Module, x: Tensor, layout: str) -> nn.Module:
    """Bring ``net`` to the device of ``x`` and its convolutions to the type of ``x``; norms stay float32, as ever."""
    net = net.to(x.device, memory_format=LAYOUTS[layout])
    for part in net.modules():
        if isinstance(part, nn.ConvTranspose2d):
            part.to(x.dtype)
    return net


def arguments(net: nn.Module) -> tuple[int, ...]:
    """Return the arguments that build another net like ``net``."""
    if isinstance(net, PlainTrunk):
        return ()
    if isinstance(net, PlainNorm):
        return (net[0].num_features,)
    return net[0].in_channels, net[0].out_channels


def inputs(batch: int, channels: int, side: int, dtype: torch.dtype, device: str) -> Tensor:
    """Return a random input, channels innermost."""
    x = torch.randn(batch, channels, side, side).to(device, dtype)
    return x.contiguous(memory_format=LAYOUTS["nhwc"])


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the lines of this claim; on a GPU with larger batches, as are usual there. Goals on a CPU are for f32."""
    cpu = settings.device == "cpu"
    for dtype in ("f32",) if cpu and settings.quick else ("f32", "bf16") if cpu else ("bf16", "f32"):
        for batch in (64,) if cpu else (64, 512):
            yield from _layers(settings, dtype, batch)
        for batch in (64, 4):
            least = 1.10 if batch == 64 else 1.2
            goals = {EAGER: least, COMPILED: least} if cpu and dtype == "f32" else {}
            yield from _one(settings, PlainTrunk(), (batch, 512, 4), dtype, "generator trunk", (goals,))


def _layers(settings: Settings, dtype: str, batch: int) -> Iterator[Line]:
    cpu = settings.device == "cpu"
    judged = cpu and dtype == "f32"
    wide, narrow, side = OUTPUT
    goals = ({EAGER: output_goal()}, {EAGER: 1.7}) if judged else ({}, {})
    yield from _one(settings, PlainOutput(wide, narrow), (batch, wide, side), dtype, "output layer", goals)
    for wide, narrow, side in LAYERS[-1:] if settings.quick else LAYERS:
        goals = ({}, {EAGER: 1.75}) if judged else ({}, {})
        yield from _one(settings, PlainNorm(narrow), (batch, narrow, 2 * side), dtype, "batch norm + ReLU", goals)
        if not cpu:
            large = dtype == "bf16" and batch == 512
            goals = ({EAGER: 1.2, COMPILED: 1.0} if large else {}, {})
            yield from _one(settings, PlainBlock(wide, narrow), (batch, wide, side), dtype, "up-sampling block", goals)


def _one(
    settings: Settings, net: nn.Module, size: tuple[int, int, int], dtype: str, what: str, goals: tuple[dict, ...]
) -> Iterator[Line]:
    """Yield forward and f+b lines of ``net``; with one entry of ``goals`` f+b alone."""
    torch.manual_seed(0)
    x = inputs(*size, DTYPES[dtype], settings.device)
    net = placed(net, x, "nhwc")
    batch, channels, side = size
    by_name = settings.device == "cuda" and isinstance(net, (PlainBlock, PlainTrunk))  # else cuDNN multiplies
    for backward, goal in zip((False, True)[-len(goals) :], goals, strict=True):
        name = f"{what} {'f+b' if backward else 'forward'}{BY_NAME if by_name else ''}"
        case = Case(claim=CLAIM, what=name, shape=f"{batch}x{channels}x{side}x{side}", dtype=dtype)
        yield from lines_of(settings, net, x, case, goal, backward=backward)


def output_goal() -> float:
    """Return the goal of the output layer's forward pass on this CPU."""
    return 3.5 if "avx512" in str(ops.build_info().get("cpu_kernels")) else 2.0
