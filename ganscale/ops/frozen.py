"""A function of networks whose weights stand still, made ready for being called thousands of times on a CPU.

``freeze`` traces it once, takes constant batch norms into the convolutions before them, and lets oneDNN apply the
activation in the convolution's own pass, on weights that are packed beforehand. In a critic of convolutions and
LeakyReLU that spares a quarter of the time.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ganscale.ops import _choice

TOLERANCE = 1e-4  # of the values' scale: what sums in another order may differ by

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default)  # reshape stands for them: a packed result lies channels last
# What oneDNN calls an activation, and its numbers from the operator's own arguments. Its relu and hardtanh would make a
# number of a NaN, which has to be seen: relu has a slope that no sum notices instead, hardtanh stays as it is.
ACTIVATIONS: dict[Any, tuple[str, Callable[..., list[float]]]] = {
    aten.relu: ("leaky_relu", lambda: [1e-30]),
    aten.leaky_relu: ("leaky_relu", lambda slope=0.01: [slope]),
    aten.silu: ("swish", list),
}
ACTIVATIONS |= {getattr(aten, f"{packet.__name__}_"): how for packet, how in list(ACTIVATIONS.items())}


class Frozen:
    """A frozen function: call it with rows of the shape it was traced for.

    ``packed`` are its convolutions, ``graph`` is all that it does.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self._traced = traced
        self._constants = _constants(traced.graph)
        self.graph, self.packed, self._held = _fused(traced.graph, self._constants)
        for node in (*traced.graph.nodes, *self.graph.graph.nodes):
            node.meta.clear()  # of the values that they had
        self._checksums: list[int] = []

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """Return the function of ``rows`` with the weights that ``follow`` found, without a gradient."""
        return self.graph(rows)

    @torch.no_grad()
    def follow(self) -> Frozen:
        """Take the weights as they are now, if they changed, and return this function.

        That takes a millisecond for a million weights: it looks at all of them, as a version counter does not see what
        is written through ``data``.
        """
        checksums = [zlib.crc32(each.contiguous().view(-1).view(torch.uint8).numpy()) for each in self._tensors()]
        if checksums != self._checksums:
            interpreter = fx.Interpreter(self._traced)
            for node in self._constants:
                interpreter.env[node] = interpreter.run_node(node)
            for convolution in self.packed:
                convolution.pack(lambda found: interpreter.env[found] if isinstance(found, fx.Node) else found)
            for name, node in self._held.items():
                setattr(self.graph, name, interpreter.env[node].detach())
            self._checksums = checksums
        return self

    @torch.no_grad()
    def stands_for(self, fn: Callable[[Tensor], Tensor], rows: Tensor) -> bool:
        """Whether this gives the values of ``fn`` now, with its weights as they are, on other rows like ``rows``.

        No where plain torch is asked for.
        """
        if _choice.resolve("auto") == "reference":
            return False
        others = _others(rows)
        return _alike(self.follow()(others), fn(others.clone()))  # fn may write to what it is given

    def _tensors(self) -> Iterator[Tensor]:
        return (getattr(self._traced, node.target) for node in self._constants if node.op == "get_attr")


class PackedConv(nn.Module):
    """act(norm(conv2d(x))) of a traced graph, by oneDNN."""

    def __init__(self, conv: fx.Node, norm: fx.Node | None, act: fx.Node | None) -> None:
        super().__init__()
        x, self.weight, self.bias, stride, padding, dilation, _, _, groups = conv.args
        self.statistics = None if norm is None else norm.args[1:5]
        self.eps = 0.0 if norm is None else norm.args[7]
        self.shape = self.weight.meta["val"].shape
        self.how = [list(padding), list(stride), list(dilation), groups]
        self.activation: list[Any] = ["none", [], ""]
        if act is not None:
            name, numbers = ACTIVATIONS[act.target.overloadpacket]
            self.activation[:2] = name, numbers(*act.args[1:])
        self.size = list(x.meta["val"].shape)
        #: equal for convolutions that are the same but for what goes in
        self.facts = self.weight, self.bias, self.statistics, self.eps, self.how, self.activation, self.size

    def pack(self, value: Callable[[Any], Any]) -> None:
        """Take the weights as they are now; ``value`` gives what a node of the traced graph holds."""
        weight, bias = value(self.weight), value(self.bias)
        if self.statistics is not None:
            gamma, beta, mean, variance = (value(each) for each in self.statistics)
            weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, self.eps, gamma, beta)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight.detach().contiguous(), *self.how, self.size)
        self.arguments = (packed, None if bias is None else bias.detach(), *self.how, *self.activation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, *self.arguments)

    def without_padding(self, x: Tensor) -> Tensor:
        """Return the same of ``x`` [n, C, K, K] of any size that is padded already, or needs none."""
        weight, bias, _, *rest = self.arguments
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, [0, 0], *rest)


@torch.no_grad()
def freeze(fn: Callable[[Tensor], Tensor], rows: Tensor) -> Frozen | None:
    """Return a faster ``fn`` for inputs of the shape and layout of ``rows`` [n, C, H, W], or None.

    ``fn`` is a function of its argument and of networks in eval mode, whose tensors may change but stay the same
    objects; who changed them calls ``follow``. None: plain torch is asked for, nothing would be gained (no CPU, not
    float32, no convolution), fn cannot be traced (it looks at values, draws numbers, leaves torch), or what was traced
    gives other values.
    """
    if _choice.resolve("auto") == "reference":
        return None
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or rows.ndim != 4:
        return None
    others = _others(rows)
    known = fn(others.clone())
    try:
        with _choice.plain_torch():  # its operators are what can be traced
            traced = _traced(fn, rows.clone())
        frozen = Frozen(traced).follow()
        found = frozen(others)
    except Exception:  # whatever tracing a user's function raises: it is then called as it is
        return None
    return frozen if frozen.packed and _alike(found, known) else None


def _others(rows: Tensor) -> Tensor:
    """Return noise in the range of ``rows``, or around what they all are, laid out as they are."""
    low, high = rows.amin(), rows.amax()
    width = high - low if high > low else 1.0
    noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
    return torch.empty_like(rows).copy_(low + width * noise)


def _alike(found: Tensor, known: Tensor) -> bool:
    return found.shape == known.shape and bool((found - known).abs().max() <= TOLERANCE * known.abs().max())


# --- the graph -------------------------------------------------------------------------------------------------------


class _NotFrozen(Exception):
    """The graph holds what a frozen function cannot."""


class _Tape(TorchDispatchMode):
    """Writes down each operator that is called, and on what.

    ``torch.fx``'s own tracer of operators would do, but loads torch's compiler first, a second and a half of work.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # else torch's base class loads the compiler all the same
        return False

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.root, self.graph = nn.Module(), fx.Graph()
        self.nodes: dict[int, fx.Node] = {}  # by the id of what they made
        self.kept: list[Tensor] = []  # alive, so that no id is given twice
        self.varying = {self.graph.placeholder("rows")}  # nodes that follow from the rows
        self.fresh: set[fx.Node] = set()  # those of them whose memory is their own
        self._name(rows, *self.varying)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Call and write down one operator."""
        kwargs = kwargs or {}
        nodes = tree_map(self.node_of, args), tree_map(self.node_of, kwargs)
        written = [place for place, each in enumerate(func._schema.arguments) if each.is_write]
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _NotFrozen(f"{func} draws numbers")
        if written and (written != [0] or nodes[0][0] not in self.fresh or nodes[0][0].users):
            raise _NotFrozen(f"{func} writes to what others see, or to what is computed once")
        found = func(*args, **kwargs)
        node = self.graph.call_function(func, *nodes)
        made = [node]
        if isinstance(found, Tensor):
            self._name(found, node)
        elif isinstance(found, tuple | list) and all(isinstance(each, Tensor) for each in found):
            for place, each in enumerate(found):
                made.append(self.graph.call_function(operator.getitem, (node, place)))
                self._name(each, made[-1])
        else:
            raise _NotFrozen(f"{func} looks at values")
        if any(each in self.varying for each in node.all_input_nodes):
            self.varying.update(made)
            if written or all(each.alias_info is None for each in func._schema.returns):
                self.fresh.update(made)
        return found

    def node_of(self, value: Any) -> Any:
        """Return what stands for ``value`` in the graph: a tensor that no operator has made is a weight."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.nodes:
            name = f"tensor_{len(self.kept)}"
            self.root.register_buffer(name, value)
            self._name(value, self.graph.get_attr(name))
        return self.nodes[id(value)]

    def _name(self, value: Tensor, node: fx.Node) -> None:
        self.nodes[id(value)] = node
        node.meta["val"] = value
        self.kept.append(value)


def _traced(fn: Callable[[Tensor], Tensor], rows: Tensor) -> fx.GraphModule:
    """Return what fn does with ``rows``."""
    with _Tape(rows) as tape:
        found = fn(rows)
    tape.graph.output(tape.nodes[id(found)])
    return fx.GraphModule(tape.root, tape.graph)


def _constants(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that follow from the weights alone, in order."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_function") and all(each in found for each in node.all_input_nodes):
            found[node] = None
    return list(found)


def _fused(graph: fx.Graph, constants: list[fx.Node]) -> tuple[fx.GraphModule, list[PackedConv], dict[str, fx.Node]]:
    """Return the rest of ``graph`` with its convolutions packed, these, and which constants it holds by which name."""
    root, new, known = nn.Module(), fx.Graph(), set(constants)
    packed: list[PackedConv] = []
    held: dict[str, fx.Node] = {}
    nodes: dict[fx.Node, fx.Node] = {}  # of the old graph, in the new one

    def now(node: fx.Node) -> fx.Node:
        if node in known and node not in nodes:
            name = f"constant_{len(held)}"
            held[name] = node
            root.register_buffer(name, torch.empty(0))
            nodes[node] = new.get_attr(name)
        return nodes[node]

    for node in graph.nodes:
        if node in known or node in nodes:
            continue
        if _is_convolution(node) and all(each in known for each in node.all_input_nodes[1:]):
            norm, act, absorbed = _behind(node, known)
            convolution = PackedConv(node, norm, act)
            place = next((i for i, each in enumerate(packed) if each.facts == convolution.facts), len(packed))
            if place == len(packed):
                root.add_module(f"convolution_{place}", convolution)
                packed.append(convolution)
            one = new.call_module(f"convolution_{place}", (now(node.args[0]),))
            nodes.update(dict.fromkeys((node, *absorbed), one))
            continue
        nodes[node] = new.node_copy(node, now)
        if node.target in VIEWS:
            nodes[node].target = aten.reshape.default
    return fx.GraphModule(root, new), packed, held


def _behind(conv: fx.Node, known: set[fx.Node]) -> tuple[fx.Node | None, fx.Node | None, list[fx.Node]]:
    """Return the batch norm and the activation behind ``conv``, and all nodes whose work it then does.

    They are taken where nothing else looks at what lies between.
    """
    norm, act, absorbed = None, _only_user(conv), []
    if act is not None and _is_constant_norm(act, known):
        norm, absorbed = act, [act, *act.users]
        results = [each for each in norm.users if each.users]  # beside the values it gives the statistics
        if [each.args[1] for each in results] != [0]:
            return None, None, []
        act = _only_user(results[0])
    if act is None or getattr(act.target, "overloadpacket", None) not in ACTIVATIONS:
        return norm, None, absorbed
    return norm, act, [*absorbed, act]


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_convolution(node: fx.Node) -> bool:
    return node.target is aten.convolution.default and node.args[6] is False and len(node.args[3]) == 2


def _is_constant_norm(node: fx.Node, known: set[fx.Node]) -> bool:
    is_norm = node.target is aten.native_batch_norm.default and node.args[5] is False
    return is_norm and all(each in known for each in node.all_input_nodes[1:])
