"""The gradient penalty of a piecewise linear critic and its weight gradients, in four sweeps over the critic.

With its masks m held fixed, such a critic is linear in x up to a shift: layer by layer, for l = 1 ... L,

    z_l = W_l h_{l-1} + b_l,   h_l = m_l z_l,   m_l = 1 where z_l > 0, else the slope,   h_0 = x,   D(x) = sum z_L

    F  forward    m_l for l < L
    D  adjoint    q_L = 1,   q_l = m_l (W_{l+1}^T q_{l+1}),   g = grad_x D = W_1^T q_1
                  n = |g|,   P = (n - center)^2  (Gulrajani et al. 2017, eq. 3), one number a sample
    T  tangent    u = dL/dg = dL/dP dP/dg,   t_0 = u,   t_l = m_l (W_l t_{l-1})
    W  weights    dL/dW_l = q_l t_{l-1}^T  (a convolution's weight gradient for input t_{l-1}, output gradient q_l)

Why W is all there is: dL = <u, dg>, and <u, g> = <q_L, W_L m_{L-1} ... m_1 W_1 u> is a product with each W_l in it
once. Its derivative in W_l is what stands to the left, q_l, times what stands to the right, t_{l-1}. Masks are constant
but on a set of measure zero, and x and the b_l enter through them alone: their gradients are zero. Automatic
differentiation finds the same numbers, and then runs a whole backward pass more on zeros, the derivative of the masks.

Here the layers are the nodes of a graph: the adjoints that several readers of a value send back are summed, and T runs
as far as the inputs of the nodes whose weights want a gradient. All images keep the memory format of x.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ganscale.ops import _bind
from ganscale.ops.penalty import masks as penalty_masks
from ganscale.ops.penalty.program import PARAMETRIC, Node, Program, Step
from ganscale.ops.penalty.rules import RULES, adjoint_with_few_channels, has_few_channels


@dataclass
class Sweeps:
    """A program, the tensors it reads, the batch's size and format, and the masks once F has found them."""

    program: Program
    tensors: Sequence[Tensor]
    rows: int
    format: torch.memory_format
    compiled: bool  # masks are bits, read and written by the compiled kernels
    masks: dict[int, Tensor] = field(default_factory=dict)

    def lay_out_weights(self) -> None:
        """Convert the weights of convolutions to the format of x: once, where several sweeps read them."""
        kernels = {node.tensors[0] for node in self.program.nodes if node.kind == "conv"}
        self.tensors = [self._laid_out(t)[0] if i in kernels else t for i, t in enumerate(self.tensors)]

    # --- F -----------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Find the masks of all activations; return [N] zeros, but NaN for samples that did not stay finite."""
        values: Values = {0: (x, False)}
        for step in self.program.forward_steps:
            inputs, free = _take(values, step)
            if step.node.kind == "act":
                h = self._writable(inputs.pop(), free[0])
                bias = self.read(step.node)[0] if step.node.tensors else None
                self.masks[step.value] = penalty_masks.activate(h, bias, step.node.options[0], self.compiled)
                values[step.value] = h, True
            else:
                h = RULES[step.node.kind].forward(step.node, inputs, self.read(step.node))
                _put(values, step, h, inputs, free)
        doubts = (_doubt(h) for h, _ in values.values())  # what is left are the ends of all branches
        return functools.reduce(torch.add, doubts)

    # --- D -----------------------------------------------------------------------------------------------------------

    def adjoint(self, start: float, like: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return ``start`` times g, and the adjoints of ``program.kept``, in the dtype of ``like``."""
        q_L = torch.full((self.rows, *self.program.nodes[-1].shape), start, dtype=like.dtype, device=like.device)
        adjoints: Values = {len(self.program.nodes): (q_L, True)}
        kept = {}
        for value in range(len(self.program.nodes), 0, -1):
            q, ours = self._laid_out(*adjoints.pop(value))
            if value in self.program.kept and start != 1:
                kept[value] = q / start
            elif value in self.program.kept:
                kept[value] = q = q if ours else q.clone()
                ours = False
            node = self.program.nodes[value - 1]
            if node.kind == "act":
                q = q if ours else q.clone()
                penalty_masks.scale(q, self.masks[value], node.options[0], self.compiled)
                parts = [q]
            else:
                parts = self._pull(node, q)
            for source, part in zip(node.inputs, parts, strict=True):
                one = node.kind == "act" or (ours and len(parts) == 1) or not _share(part, q)
                adjoints[source] = (part, one) if source not in adjoints else (_sum(*adjoints[source], part), True)
        return self._writable(*adjoints[0]), [kept[value] for value in self.program.kept]

    def _pull(self, node: Node, q: Tensor) -> list[Tensor]:
        """The adjoints of a linear node's inputs, from that of its output."""
        shapes = [(self.rows, *self.program.shape(source)) for source in node.inputs]
        if self.compiled and has_few_channels(node, shapes[0]):
            return [adjoint_with_few_channels(node, q, self.read(node), shapes[0])]
        return RULES[node.kind].adjoint(node, q, self.read(node), shapes)

    # --- T and W -----------------------------------------------------------------------------------------------------

    def weights(self, u: Tensor, kept: Sequence[Tensor], wanted: tuple[int, ...]) -> dict[int, Tensor]:
        """Return the gradients of the tensors at ``wanted``; for one that is not there it is zero."""
        gradients: Gradients = {}
        adjoints = dict(zip(self.program.kept, kept, strict=True))
        values: Values = {0: (u, True)}
        del u  # so that its memory is free once t_1 is there
        for step in self.program.tangent_steps(wanted):
            inputs, free = _take(values, step)
            weigh = step.node.kind in PARAMETRIC and step.node.tensors[0] in wanted
            # the smaller result first, as it is there while the other one is made
            late = weigh and self.tensors[step.node.tensors[0]].numel() > self.rows * math.prod(step.node.shape)
            if weigh and not late:
                self._weigh(step, inputs, adjoints, gradients)
            if step.read_later:
                self._push(values, step, inputs, free)
            if late:
                self._weigh(step, inputs, adjoints, gradients)
        return gradients

    def _push(self, values: Values, step: Step, inputs: list[Tensor], free: list[bool]) -> None:
        """T of one node."""
        if step.node.kind == "act":
            t = self._writable(inputs.pop(), free[0])
            penalty_masks.scale(t, self.masks[step.value], step.node.options[0], self.compiled)
            values[step.value] = t, True
        else:
            t = RULES[step.node.kind].tangent(step.node, inputs, self.read(step.node))
            _put(values, step, t, inputs, free)

    def _weigh(self, step: Step, inputs: list[Tensor], adjoints: dict[int, Tensor], gradients: Gradients) -> None:
        """W of one node: add to the gradient of its weight, in the weight's layout."""
        tensor, q = step.node.tensors[0], adjoints[self.program.roots[step.value]]
        q = self._laid_out(q.reshape(self.rows, *step.node.shape))[0]
        part = RULES[step.node.kind].weights(step.node, inputs, q, self.read(step.node))
        if tensor in gradients:
            gradients[tensor] += part
            return
        fits = part.stride() == torch.empty_like(self.tensors[tensor], device="meta").stride()
        gradients[tensor] = part if fits else torch.empty_like(self.tensors[tensor]).copy_(part)

    # --- memory ------------------------------------------------------------------------------------------------------

    def read(self, node: Node) -> list[Tensor]:
        return [self.tensors[i] for i in node.tensors]

    def _laid_out(self, t: Tensor, ours: bool = False) -> tuple[Tensor, bool]:
        """Return ``t`` as dense memory in the format of x, and whether that is ours."""
        images = t.ndim == _AXES.get(self.format)
        dense = t.contiguous(memory_format=self.format if images else torch.contiguous_format)
        return dense, ours or dense is not t

    def _writable(self, t: Tensor, ours: bool) -> Tensor:
        """Return ``t`` as dense memory that may be overwritten."""
        dense, ours = self._laid_out(t, ours)
        return dense if ours else dense.clone()


Gradients = dict[int, Tensor]
Values = dict[int, tuple[Tensor, bool]]  # by value; with whether nobody else needs its memory

_AXES = {torch.channels_last: 4, torch.channels_last_3d: 5}


def _take(values: Values, step: Step) -> tuple[list[Tensor], list[bool]]:
    """Return a step's inputs, and which of them nobody needs after it; forget those that are read no more."""
    inputs = [values[source][0] for source in step.node.inputs]
    free = [values[source][1] and source in step.last for source in step.node.inputs]
    for source in step.last:
        del values[source]
    return inputs, free


def _put(values: Values, step: Step, output: Tensor, inputs: list[Tensor], free: list[bool]) -> None:
    """Store a step's output; where it shares memory with an input that is needed elsewhere, neither may be written."""
    shared = [
        source for source, h, f in zip(step.node.inputs, inputs, free, strict=True) if not f and _share(output, h)
    ]
    for source in set(shared) & values.keys():
        values[source] = values[source][0], False
    values[step.value] = output, not shared


def _doubt(h: Tensor) -> Tensor:
    """[N] zeros, and NaN where ``h`` [N, ...] holds a NaN or an infinity; masks alone would make numbers of them."""
    h = h.sum(tuple(range(1, h.ndim)), dtype=_bind.accumulation(h.dtype)) if h.ndim > 1 else h
    return h * 0


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _sum(total: Tensor, ours: bool, part: Tensor) -> Tensor:
    return total.add_(part) if ours and total.stride() == part.stride() else total + part
