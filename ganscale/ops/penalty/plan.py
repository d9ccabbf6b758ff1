"""Which way a gradient penalty goes: the fused operator where a watched pass allows it, else ordinary autograd."""

from __future__ import annotations

import sys
import weakref
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from ganscale.ops.penalty.program import PARAMETRIC, parse
from ganscale.ops.penalty.trace import LOW_OR_SINGLE, Session, Traced, global_hooks


@dataclass(frozen=True, slots=True)
class PenaltyChoice:
    """Which way a gradient penalty is computed ("fused", "piecewise" or "autograd"), and why.

    fused: the critic is piecewise linear in x, and four sweeps over it, one operator, give the penalty and its weight
    gradients. piecewise: ordinary autograd, in which the piecewise linear activations have no second derivative instead
    of zeros. autograd: ordinary autograd. All give the same penalties and gradients.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments of the fused operator: x and tensors in the dtype to compute in."""

    x: Tensor
    tensors: list[Tensor]
    program: str


# Multiplications of one pass of a fully connected critic from which watching it gains more than it costs, on one
# AVX-512 core. Convolutions multiply more for each weight, and pay at the smallest images.
PAYS_FROM = 2**25


def plain(critic: object, x: Tensor, impl: str) -> str:
    """Say why a penalty is better left to ordinary autograd from the start; the empty string where it is not."""
    if impl == "reference":
        return "impl is 'reference'"
    why = _unwatchable(x)
    if why or impl == "fused" or x.device.type != "cpu" or not isinstance(critic, nn.Module):
        return why
    weights = 0
    for parameter in critic.parameters():
        if parameter.ndim > 2:
            return ""
        weights += parameter.numel()
    products = x.shape[0] * weights
    return f"{products} multiplications a pass are too few to gain" if products < PAYS_FROM else ""


def _unwatchable(x: Tensor) -> str:
    if x.shape[0] == 0 or x.numel() == 0:
        return "there are no samples"
    if peek_interpreter_stack() is not None:
        return "the call is inside a torch.func transform"
    if global_hooks():
        return "there are global module hooks"
    if type(x) not in (Tensor, nn.Parameter):
        return f"x is a {type(x).__name__}"
    return ""


# Critics, and the code of functions, whose pass had to be run a second time because watching it failed. They are not
# watched again, so that what a pass does besides (a power iteration, a draw) is done once; the results are the same.
_not_watched: weakref.WeakSet = weakref.WeakSet()


def do_not_watch(critic: object) -> None:
    """Leave the passes of this critic alone from now on."""
    if _known(critic) is not None:
        _not_watched.add(_known(critic))


def cannot_be_watched(critic: object) -> bool:
    """Tell whether watching this critic has failed before."""
    return _known(critic) in _not_watched


def _known(critic: object) -> object:
    """What stays of a critic from call to call: a module, or the code of a function."""
    return critic if isinstance(critic, nn.Module) else getattr(critic, "__code__", None)


def without_compiling() -> AbstractContextManager:
    """Run compiled parts of a critic as they were written: torch.compile has no second derivative."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def plan(session: Session, logits: object, x: Tensor) -> Plan | None:
    """Return what the fused operator needs where it can compute ``logits``; else leave the reason in the session."""
    if not isinstance(logits, Traced) or not session.pending:
        return None
    text, tensors = session.program(logits)
    nodes = parse(text).nodes
    if not nodes or logits.ndim == 0 or logits.shape[0] != x.shape[0]:
        session.reason = "the critic's output is not one row of logits a sample"
        return None
    if x.requires_grad and not all(t.is_leaf and t is not x for t in tensors):
        session.reason = "x requires grad, and what the critic multiplies it by may depend on it"
        return None
    dtype = x.dtype
    if session.autocast and x.dtype in LOW_OR_SINGLE and any(node.kind in ("conv", "linear") for node in nodes):
        dtype = session.autocast
    elif any(t.dtype != dtype for t in tensors):
        session.reason = "the critic's tensors have several dtypes"
        return None
    point = x if x.requires_grad else x.detach()
    return Plan(point.to(dtype), [t.to(dtype) for t in tensors], text)


def explain(critic, x: Tensor, impl: str) -> PenaltyChoice:
    """Watch a pass that stops at the first call that is not understood."""
    why = plain(critic, x, impl)
    if why:
        return PenaltyChoice("autograd", why)
    with torch.enable_grad(), without_compiling(), _untouched(critic, x):
        point = x if x.requires_grad else x.detach().requires_grad_()
        session = Session(point, impl=impl, dry=True)
        planned = plan(session, session.run(getattr(critic, "_orig_mod", critic)), x)
    if planned is None:
        return PenaltyChoice("piecewise", session.reason)
    nodes = parse(planned.program).nodes
    weights = sum(node.kind in PARAMETRIC for node in nodes)
    acts = sum(node.kind == "act" for node in nodes)
    return PenaltyChoice("fused", f"piecewise linear in x: {weights} nodes with weights, {acts} activations")


def _untouched(critic: object, x: Tensor) -> ExitStack:
    """Keep the buffers of a module and torch's random numbers as they are."""
    stack = ExitStack()
    stack.enter_context(torch.random.fork_rng([x.device] if x.device.type == "cuda" else []))
    if isinstance(critic, nn.Module):
        for buffer in critic.buffers():
            stack.callback(_restore, buffer, buffer.clone())
    return stack


@torch.no_grad()
def _restore(buffer: Tensor, before: Tensor) -> None:
    if not torch.equal(buffer, before):
        buffer.copy_(before)
