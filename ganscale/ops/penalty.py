"""The gradient penalty of a critic: one number a sample, unreduced, differentiable in the critic's parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ganscale.errors import UserError
from ganscale.ops import _check, _choice, _register, reference


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
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
    carries a graph; a norm of exactly 0 gives gradient 0. 16-bit gradients are summed, and returned, in float32.
    Raises UserError where the critic's output does not depend on x, or has another batch size.
    """
    _check.floating("x", x, least_axes=2)
    _check.center(center)
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        logits = critic(point)
        _check_logits(logits, point)
        (g,) = torch.autograd.grad(logits.sum(), point, create_graph=keep_graph, allow_unused=True)
    if g is None:
        raise UserError("the critic's output", "depend on its input", "no gradient", "remove .detach() from it")
    fused = _choice.use_fused(impl, g, "sample_norm")
    penalty, _ = (_register.gp_penalty if fused else reference.gp_penalty)(g, float(center), bool(one_sided))
    return penalty


def _check_logits(logits: object, x: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise UserError("the critic", "return one tensor of logits", type(logits).__name__, "wrap it in a lambda")
    if logits.ndim == 0 or logits.shape[0] != x.shape[0]:
        got = f"shape {tuple(logits.shape)} for {x.shape[0]} samples"
        raise UserError("the critic", "return one row of logits a sample", got, "do not average over the batch")
    if not logits.requires_grad:
        raise UserError("the critic's output", "depend on its input", "no graph", "remove .detach() from it")
