"""The gradient penalty of a critic: one number a sample, unreduced, differentiable in the critic's parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ganscale.errors import UserError
from ganscale.ops import _check, _choice, _register, reference
from ganscale.ops.penalty import op as penalty_op
from ganscale.ops.penalty.plan import (
    PenaltyChoice,
    Plan,
    cannot_be_watched,
    do_not_watch,
    explain,
    plain,
    plan,
    without_compiling,
)
from ganscale.ops.penalty.trace import Session, unwatched

Critic = Callable[[Tensor], Tensor]


def gradient_penalty(
    critic: Critic,
    x: Tensor,
    *,
    center: float = 1.0,
    one_sided: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Return [N] penalties (|grad_x D(x)|_2 - center)^2 of the samples x [N, ...] (Gulrajani et al. 2017, eq. 3).

    The norm is over all axes of a sample but the batch. ``center=0`` gives |grad|^2 (R1 and R2, Mescheder et al.
    2018); ``one_sided`` penalises norms above ``center`` only. Several logits a sample are summed; a condition goes
    in as a callable of x alone. The critic must treat samples apart (no batch norm), else "its gradient at sample n"
    means nothing. Differentiable in the critic's parameters where gradients are enabled at the call, and in x where x
    carries a graph; a norm of exactly 0 gives gradient 0, and a sample whose logits are not finite a penalty of NaN.
    16-bit gradients are summed, and returned, in float32.
    A critic that is piecewise linear in x is differentiated by a shorter way to the same numbers (``explain_choice``
    says whether, and why); a second derivative of the penalty needs ``impl="reference"``.
    Raises UserError where the critic's output does not depend on x, or has another batch size.
    """
    _check.floating("x", x, least_axes=2)
    _check.center(center)
    # Inside torch.compile the penalty is a graph break: its passes cannot be compiled, and are watched as they run.
    penalise = torch._disable_dynamo(_penalise) if torch.compiler.is_compiling() else _penalise
    return penalise(critic, x, float(center), bool(one_sided), _choice.resolve(impl))


def _penalise(critic: Critic, x: Tensor, center: float, one_sided: bool, impl: str) -> Tensor:
    keep_graph = torch.is_grad_enabled()
    left_alone = bool(plain(critic, x, impl))
    _choice.use_fused(impl, x, "sample_norm")  # warns, or raises, where there are no kernels
    with torch.enable_grad(), without_compiling():
        point = x if x.requires_grad else x.detach().requires_grad_()
        critic = getattr(critic, "_orig_mod", critic)  # of a module that torch.compile wraps
        if left_alone:
            logits = critic(point)
        elif cannot_be_watched(critic):
            logits = unwatched(critic, point, impl)
        else:
            session = Session(point, impl=impl)
            logits = session.run(critic)
            planned = plan(session, logits, x)
            if planned:
                return _fused(planned, center, one_sided, keep_graph)
            logits = session.real(logits)
            if session.unwatched:
                do_not_watch(critic)
        g = _gradient(logits, point, keep_graph)
    fused = _choice.use_fused(impl, g, "sample_norm")
    penalty, _ = (_register.gp_penalty if fused else reference.gp_penalty)(g, center, one_sided)
    penalty = penalty * _one_where_finite(logits, penalty.dtype)
    return penalty if left_alone or not keep_graph else _with_zeros(penalty, logits, x, point)


def explain_choice(critic: Critic, x: Tensor, *, impl: str = "auto") -> PenaltyChoice:
    """Say which way ``gradient_penalty(critic, x, impl=impl)`` goes, and why.

    Of ``x`` only shape, dtype and device matter; no layer is computed. The buffers of a critic that is a module, and
    torch's random numbers, stay as they are.
    """
    _check.floating("x", x, least_axes=2)
    return explain(critic, x, _choice.resolve(impl))


def _fused(planned: Plan, center: float, one_sided: bool, keep_graph: bool) -> Tensor:
    compiled = not _choice.obstacle(planned.x.device)
    keep = keep_graph and any(tensor.requires_grad for tensor in planned.tensors)
    with torch.set_grad_enabled(keep_graph):
        return penalty_op.forward(planned.x, planned.tensors, planned.program, center, one_sided, compiled, keep)[0]


def _gradient(logits: object, point: Tensor, keep_graph: bool) -> Tensor:
    """The gradient of the summed logits, by ordinary autograd."""
    _check_logits(logits, point)
    (g,) = torch.autograd.grad(logits.sum(), point, create_graph=keep_graph, allow_unused=True)
    if g is None:
        raise UserError("the critic's output", "depend on its input", "no gradient", "remove .detach() from it")
    return g


def _one_where_finite(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """[N] ones, and NaN where a logit is not finite, which a piecewise linear critic's gradient would not show."""
    doubt = logits.detach().to(dtype) * 0
    return 1 + (doubt.flatten(1).sum(1) if doubt.ndim > 1 else doubt)


def _check_logits(logits: object, x: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise UserError("the critic", "return one tensor of logits", type(logits).__name__, "wrap it in a lambda")
    if logits.ndim == 0 or logits.shape[0] != x.shape[0]:
        got = f"shape {tuple(logits.shape)} for {x.shape[0]} samples"
        raise UserError("the critic", "return one row of logits a sample", got, "do not average over the batch")
    if not logits.requires_grad:
        raise UserError("the critic's output", "depend on its input", "no graph", "remove .detach() from it")


# --- explicit zeros --------------------------------------------------------------------------------------------------


class _Zeros(torch.autograd.Function):
    """The identity on a penalty, with gradient zero for the tensors beside it: an optimiser expects one for each."""

    @staticmethod
    def forward(ctx, penalty: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others)
        return penalty.view_as(penalty)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, ...]:
        return g, *(torch.zeros_like(other) for other in ctx.saved_tensors)


def _with_zeros(penalty: Tensor, logits: Tensor, x: Tensor, point: Tensor) -> Tensor:
    """Give every parameter the logits depend on a gradient, as torch does where second derivatives are zeros."""
    found = [x] if x.requires_grad else []
    seen, waiting = {x.grad_fn, None}, [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not point:
            found.append(leaf)
        waiting += [source for source, _ in node.next_functions]
    return _Zeros.apply(penalty, *found)
