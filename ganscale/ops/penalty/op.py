"""The fused gradient penalty as torch sees it: one operator for F and D, whose backward is a second one for T and W.

Both take the critic as a program (text) and the tensors it reads. Gradients arrive one number a sample, so means,
weights, loss scales and accumulation are ordinary autograd. Biases get explicit zeros, as from automatic
differentiation. The second operator has no derivative: differentiating a penalty twice raises UserError.

N samples, S elements of one sample.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from ganscale.errors import UserError
from ganscale.ops import _bind, reference
from ganscale.ops.penalty import masks as penalty_masks
from ganscale.ops.penalty.fdtw import Sweeps
from ganscale.ops.penalty.program import Program, parse

HALF_START = 64.0  # D starts here in float16, whose numbers below 6e-5 lose digits; a power of two, so nothing rounds

CONVERTS_FROM = 2.0  # elements of images for each weight of a convolution, from which channels_last gains


def _sweeps(text: str, tensors: list[Tensor], x: Tensor, compiled: bool) -> Sweeps:
    program = parse(text)
    return Sweeps(program, tensors, x.shape[0], format_of(x, program), compiled)


def format_of(x: Tensor, program: Program) -> torch.memory_format:
    """The memory format that all images take: that of x, but channels_last where oneDNN convolves faster so.

    That is where there is more to convolve than there are weights to convert, which are converted in every sweep.
    """
    onednn = x.device.type == "cpu" and x.dtype != torch.float64 and torch.backends.mkldnn.enabled
    if x.ndim == 4 and (_bind.channels_last(x) or (onednn and x.shape[0] * program.reuse >= CONVERTS_FROM)):
        return torch.channels_last
    return torch.channels_last_3d if x.ndim == 5 and _bind.channels_last(x) else torch.contiguous_format


def _forward(
    x: Tensor, tensors: list[Tensor], program: str, center: float, one_sided: bool, compiled: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """F and D: penalties and norms [N], g, and what T and W need: adjoints and masks."""
    with torch.autocast(x.device.type, enabled=False):
        sweeps = _sweeps(program, tensors, x, compiled)
        sweeps.lay_out_weights()
        doubt = sweeps.forward(x.contiguous(memory_format=sweeps.format))
        half = x.dtype == torch.float16
        g, kept = sweeps.adjoint(HALF_START if half else 1.0, x)
        g = g.float().div_(HALF_START) if half else g
        g.add_(reference.per_sample(doubt, g))
        penalty, norm = _penalty(g, center, one_sided, compiled)
    masks = [sweeps.masks[value] for value in sweeps.program.acts]
    return (penalty, norm, g, kept, masks) if keep else (penalty, norm, g.new_empty(0), [], [])


def _penalty(g: Tensor, center: float, one_sided: bool, compiled: bool) -> tuple[Tensor, Tensor]:
    return (_bind.gp_penalty if compiled else reference.gp_penalty)(g, center, one_sided)


forward = custom_op(
    "ganscale::penalty_forward",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor[] tensors, str program, float center, bool one_sided, bool compiled, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor[], Tensor[])",
)


@forward.register_fake
def _(x, tensors, program, center, one_sided, compiled, keep):
    plan, rows = parse(program), x.shape[0]
    layout = format_of(x, plan)
    norm = x.new_empty(rows, dtype=_bind.accumulation(x.dtype))
    if not keep:
        return norm, torch.empty_like(norm), norm.new_empty(0, dtype=_dtype_of_g(x)), [], []
    g = _empty(x, x.shape, layout, _dtype_of_g(x))
    kept = [_empty(x, (rows, *plan.shape(value)), layout) for value in plan.kept]
    return norm, torch.empty_like(norm), g, kept, _empty_masks(plan, x, layout, compiled)


def _dtype_of_g(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def _empty(x: Tensor, shape: tuple, layout: torch.memory_format, dtype: torch.dtype | None = None) -> Tensor:
    images = len(shape) == {torch.channels_last: 4, torch.channels_last_3d: 5}.get(layout)
    layout = layout if images else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=layout)


def _empty_masks(plan: Program, x: Tensor, layout: torch.memory_format, compiled: bool) -> list[Tensor]:
    masks = []
    for value in plan.acts:
        shape = (x.shape[0], *plan.shape(value))
        elements = torch.Size(shape).numel() if not any(isinstance(s, torch.SymInt) for s in shape) else None
        if elements is None:
            elements = shape[0]
            for size in shape[1:]:
                elements = elements * size
        bits = (penalty_masks.mask_bytes(elements),)
        masks.append(_empty(x, bits if compiled else shape, layout, torch.uint8 if compiled else torch.bool))
    return masks


def _coefficient(norm: Tensor, to_penalty: Tensor, center: float, one_sided: bool) -> Tensor:
    """[N] factors c of u = c g, dP/dg times what arrives: 2 (n - center) / n, and 0 where n = 0."""
    if center == 0:
        return 2 * to_penalty  # P = n^2
    zero = norm == 0
    excess = norm - center
    share = (excess.clamp(min=0) if one_sided else excess) / torch.where(zero, 1, norm)
    return torch.where(zero, 0, 2 * to_penalty * share)


def _backward(
    to_penalty: Tensor,
    norm: Tensor,
    g: Tensor,
    tensors: list[Tensor],
    kept: list[Tensor],
    masks: list[Tensor],
    program: str,
    center: float,
    one_sided: bool,
    compiled: bool,
    wanted: list[int],
) -> list[Tensor]:
    """T and W: the gradients of the tensors at the positions ``wanted``."""
    with torch.autocast(g.device.type, enabled=False):
        sweeps = _sweeps(program, tensors, g, compiled)
        sweeps.masks = dict(zip(sweeps.program.acts, masks, strict=True))
        dtype = tensors[0].dtype
        scale = reference.per_sample(_coefficient(norm, to_penalty, center, one_sided), g)
        found = sweeps.weights((scale * g).to(dtype), kept, tuple(wanted))
        return [found[index] if index in found else torch.zeros_like(tensors[index]) for index in wanted]


backward = custom_op(
    "ganscale::penalty_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor to_penalty, Tensor norm, Tensor g, Tensor[] tensors, Tensor[] kept, Tensor[] masks, str program,"
    " float center, bool one_sided, bool compiled, int[] wanted) -> Tensor[]",
)


@backward.register_fake
def _(to_penalty, norm, g, tensors, kept, masks, program, center, one_sided, compiled, wanted):
    return [torch.empty_like(tensors[index]) for index in wanted]


def _forward_context(ctx, inputs, output):
    x, tensors, *ctx.options, _ = inputs
    _, norm, g, kept, masks = output
    ctx.set_materialize_grads(False)
    ctx.counts = len(tensors), len(kept)
    ctx.save_for_backward(norm, g, *tensors, *kept, *masks)
    ctx.x_shape, ctx.x_dtype = x.shape, x.dtype


def _forward_backward(ctx, to_penalty, *_):
    to_x, to_tensors = ctx.needs_input_grad[:2]
    norm, g, *rest = ctx.saved_tensors
    count, kept = ctx.counts
    tensors, adjoints, masks = rest[:count], rest[count : count + kept], rest[count + kept :]
    gradients: list[Tensor | None] = [None] * count
    wanted = [i for i, needed in enumerate(to_tensors) if needed]
    if to_penalty is not None and wanted:
        program, center, one_sided, compiled = ctx.options
        found = backward(to_penalty, norm, g, tensors, adjoints, masks, program, center, one_sided, compiled, wanted)
        for index, gradient in zip(wanted, found, strict=True):
            gradients[index] = gradient
    return (
        (g.new_zeros(ctx.x_shape, dtype=ctx.x_dtype) if to_x and to_penalty is not None else None),
        gradients,
        *[None] * 5,
    )


forward.register_autograd(_forward_backward, setup_context=_forward_context)


def _refuse_second_derivative(ctx, *_):
    raise UserError(
        "a fused gradient penalty",
        "be differentiated once",
        "a second derivative",
        "use ops.gradient_penalty(..., impl='reference')",
    )


backward.register_autograd(_refuse_second_derivative)
