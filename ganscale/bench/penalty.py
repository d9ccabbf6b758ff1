"""Claim: the gradient penalty, with its gradients in every weight, against what plain torch needs for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ganscale import ops
from ganscale.bench.lines import LAYOUTS, Case, Line, Settings, compare, tolerance
from ganscale.bench.peers import functional_penalty_gradient, plain_critic, textbook_penalty, without_zero_terms

CLAIM = "penalty"
BATCH = 64
EAGER, PIECEWISE, COMPILED = "eager autograd", "eager without zero terms", "torch.compile of torch.func"
HOOKED_GOALS = {EAGER: 1.35}
CUDA_GOALS = {EAGER: 1.4}  # at the larger batch
GOALS = {
    "f32": {EAGER: 1.6, PIECEWISE: 1.08, COMPILED: 1.55},
    "bf16": {EAGER: 1.45, PIECEWISE: 1.0},
}


def gradients(penalty: Callable[[Tensor], Tensor], critic: nn.Module, x: Tensor, dtype: str) -> list[Tensor]:
    """Return the gradients of the mean penalty in the critic's weights; "bf16" runs the networks under autocast."""
    weights = [parameter for parameter in critic.parameters() if parameter.ndim > 1]  # a bias has gradient 0
    with torch.autocast(x.device.type, torch.bfloat16) if dtype == "bf16" else nullcontext():
        value = penalty(x).mean()
    return list(torch.autograd.grad(value, weights))


def setting(side: int, layout: str, device: str, *, batch: int = BATCH) -> tuple[nn.Sequential, Tensor]:
    """Return a critic and interpolates for it, of the same values whatever the layout."""
    torch.manual_seed(0)
    critic = plain_critic(side).to(device, memory_format=LAYOUTS[layout])
    with torch.no_grad():
        for parameter in critic.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)  # gradients of about norm 1, as in training
    x = torch.randn(batch, 3, side, side).to(device).contiguous(memory_format=LAYOUTS[layout])
    return critic, x


def compiled_gradients(critic: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return the compiled functional form; it compiles on its first call, and may fail there."""
    parameters = {name: p.detach() for name, p in critic.named_parameters()}
    torch.compiler.reset()  # else the limit of recompilations is reached, and the peer is silently eager
    compiled = torch.compile(functional_penalty_gradient(critic), dynamic=False)
    return lambda: compiled(parameters, x)


def contenders(
    settings: Settings, side: int, batch: int, layout: str, dtype: str
) -> tuple[dict[str, Callable], Callable]:
    """Return the peers and ours as calls without arguments."""
    critic, x = setting(side, layout, settings.device, batch=batch)
    light = without_zero_terms(critic)
    peers: dict[str, Callable[[], object]] = {
        EAGER: lambda: gradients(lambda x: textbook_penalty(critic, x), critic, x, dtype),
        PIECEWISE: lambda: gradients(lambda x: textbook_penalty(light, x), critic, x, dtype),
    }
    usual = settings.device == "cpu" or (layout == "nhwc" and batch > BATCH)  # on a GPU, one compilation a side
    if dtype == "f32" and usual and not settings.quick:
        peers[COMPILED] = compiled_gradients(critic, x)

    def ours() -> list[Tensor]:
        return gradients(lambda x: ops.gradient_penalty(critic, x, impl="fused"), critic, x, dtype)

    return peers, ours


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the lines of this claim."""
    for side in settings.sides:
        for batch in settings.batches:
            yield from _measure(settings, side, batch)
        case = Case(claim=CLAIM, what="the same, one layer hooked", shape=f"{BATCH}x3x{side}x{side}")
        yield from _hooked(settings, side, case)


def _measure(settings: Settings, side: int, batch: int) -> Iterator[Line]:
    what, shape = "penalty + weight gradients", f"{batch}x3x{side}x{side}"
    for dtype in ("f32", "bf16"):
        goals = GOALS[dtype] if settings.device == "cpu" else CUDA_GOALS if batch > BATCH else {}
        judged = {"goals": goals, "tolerance": tolerance(dtype, settings.device)}
        for layout in settings.layouts if dtype == "f32" else ("nhwc",):
            peers, ours = contenders(settings, side, batch, layout, dtype)
            case = Case(claim=CLAIM, what=what, shape=shape, dtype=dtype, layout=layout)
            yield from compare(settings, case, peers=peers, ours=ours, graphs=True, **judged)


def _hooked(settings: Settings, side: int, case: Case) -> Iterator[Line]:
    """A critic whose layer carries a hook is not fused; the way that all others can go spares the zeros alone."""
    critic, x = setting(side, case.layout, settings.device)
    critic[0].register_forward_hook(lambda *_: None)
    peer = lambda: gradients(lambda x: textbook_penalty(critic, x), critic, x, "f32")  # noqa: E731
    ours = lambda: gradients(lambda x: ops.gradient_penalty(critic, x, impl="fused"), critic, x, "f32")  # noqa: E731
    goals = HOOKED_GOALS if settings.device == "cpu" else {}
    judged = {"goals": goals, "tolerance": tolerance("f32", settings.device)}
    yield from compare(settings, case, peers={EAGER: peer}, ours=ours, graphs=True, **judged)
