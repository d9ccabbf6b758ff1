"""A frozen function of images of which a window is replaced, computed only where the window reaches.

A convolution sees little of an image at once, so behind the first ones a window changes a patch of the map that the
image as a whole has there. These layers are computed for the patch alone, as long as it is small; what follows gets the
map with the patch in it.

Legend: S images, V windows, T rows (an image and a window each), R rows of one pass, K sides of a crop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ganscale.ops.frozen import Frozen, PackedConv

WORTH = 0.5  # the largest part of a map that is still computed as a patch
NOWHERE = 1 << 40  # further than any place in a table
SPARED = 8  # multiplications at least, for each number that is looked up
NUMBERS = 1 << 19  # of the crops of one convolution that are computed at once: they stay in the caches
MOST_NUMBERS = 1 << 24  # of whole maps that are held
MOST_LINES = 1 << 21  # that are kept

aten = torch.ops.aten
# elementwise all, though not every release of torch tags them so
ELEMENTWISE = {aten.hardtanh, aten.hardtanh_, aten.leaky_relu, aten.leaky_relu_, aten.silu, aten.silu_}


@dataclass(frozen=True)
class _Axis:
    """Along one side of a map: which places each window changes, and where its crop and its patch begin."""

    length: int
    low_V: Tensor  # the first changed place
    high_V: Tensor  # behind the last one
    start_V: Tensor  # of the patch, which is as long for all windows
    size: int

    @classmethod
    def of(cls, length: int, low_V: Tensor, high_V: Tensor) -> _Axis:
        size = int((high_V - low_V).max())
        return cls(length, low_V, high_V, low_V.clamp(max=length - size), size)

    def behind(self, kernel: int, stride: int, dilation: int, padding: tuple[int, int]) -> _Axis:
        """Return the same for the map behind a convolution that pads by so much before and behind."""
        reach, (before, after) = (kernel - 1) * dilation, padding
        length = (self.length + before + after - reach - 1) // stride + 1
        low = (-((reach - before - self.low_V) // stride)).clamp(0, length - 1)  # rounded up
        high = ((self.high_V - 1 + before) // stride + 1).clamp(max=length)
        return _Axis.of(length, low, torch.maximum(high, low + 1))

    def crop(self, kernel: int, stride: int, dilation: int, padding: tuple[int, int]) -> Tensor:
        """Return the places [V, K] before a convolution that the patch behind it, which is self, is made of."""
        places = torch.arange((self.size - 1) * stride + (kernel - 1) * dilation + 1)
        return self.start_V[:, None] * stride - padding[0] + places


@dataclass(frozen=True)
class _Crop:
    """What of a map each window needs: ``places_VK`` along both sides, which may lie outside it."""

    axes: tuple[_Axis, _Axis]
    places_VK: tuple[Tensor, Tensor]

    @property
    def area(self) -> int:
        """How many places the map has."""
        return self.axes[0].length * self.axes[1].length

    @property
    def patch(self) -> int:
        """How many of them a window changes."""
        return self.axes[0].size * self.axes[1].size


@dataclass(frozen=True)
class _Step:
    """One convolution, on crops, a node that pads before it, and the elementwise nodes behind it."""

    crop: _Crop
    pad: list[fx.Node]
    convolution: PackedConv
    nodes: list[fx.Node] = field(default_factory=list)

    @property
    def numbers(self) -> int:
        """How many a crop has."""
        high, wide = (places_VK.shape[1] for places_VK in self.crop.places_VK)
        return self.convolution.size[1] * high * wide


class Windowed:
    """``frozen`` of images with windows of other pixels; ``boxes`` int64 [V, 4] are top, bottom, left and right."""

    def __init__(
        self, frozen: Frozen, leading: list[fx.Node], steps: list[_Step], whole: _Crop, rest: fx.GraphModule
    ) -> None:
        self._frozen, self._leading, self._steps, self._rest = frozen, leading, steps, rest
        self._crops = [*(step.crop for step in steps), whole]
        self._lines: tuple[Any, dict[int, list[Tensor]]] = None, {}  # of the last rows, by the start of a group

    @classmethod
    def of(cls, frozen: Frozen, boxes: Tensor, size: tuple[int, int]) -> Windowed | None:
        """Return ``frozen`` for windows in images of ``size`` (H, W), or None where that would spare nothing."""
        leading: list[fx.Node] = []
        steps: list[_Step] = []
        graph = frozen.graph
        last = next(iter(graph.graph.nodes))
        axes = tuple(_Axis.of(n, boxes[:, 2 * i], boxes[:, 2 * i + 1]) for i, n in enumerate(size))
        while len(last.users) == 1:
            node = next(iter(last.users))
            pad = [node] if _is_zero_padding(node) else []
            if pad and len(node.users) == 1:
                node = next(iter(node.users))
            if node.op == "call_module":
                convolution = graph.get_submodule(node.target)
                how = _how(convolution, pad)
                behind = tuple(axis.behind(*one) for axis, one in zip(axes, how, strict=True))
                if behind[0].size * behind[1].size > WORTH * behind[0].length * behind[1].length:
                    break
                crops = tuple(axis.crop(*one) for axis, one in zip(behind, how, strict=True))
                steps.append(_Step(_Crop(axes, crops), pad, convolution))
                axes = behind
            elif not pad and _is_elementwise(node, graph):
                (steps[-1].nodes if steps else leading).append(node)
            else:
                break
            last = node
        whole = _Crop(axes, tuple(torch.arange(axis.length).expand(len(boxes), -1) for axis in axes))
        one = cls(frozen, leading, steps, whole, _from(graph, last))
        return one if steps and one.images and one._is_worth_it() else None

    @property
    def images(self) -> int:
        """How many images ``on`` should be given at once, so that their maps take little memory; 0: not even one."""
        sizes = [step.convolution.size[1] * step.crop.area for step in self._steps]
        return MOST_NUMBERS // (2 * sizes[0] + sum(sizes[1:]) + self._last_numbers)

    @property
    def _last_numbers(self) -> int:
        """How many the last map has that is put together."""
        return self._steps[-1].convolution.shape[0] * self._crops[-1].area

    def _is_worth_it(self) -> bool:
        spared = sum(
            step.convolution.shape.numel() * (behind.area - behind.patch)
            for step, behind in zip(self._steps, self._crops[1:], strict=True)
        )
        return spared >= SPARED * (sum(step.numbers for step in self._steps) + self._last_numbers)

    @torch.no_grad()
    def on(self, images: Tensor, absent: Tensor, rows: Tensor, at_once: int) -> Callable[[Tensor], Tensor]:
        """Return the function of places in ``rows`` int64 [T, 2], of which each is an image's number and a window's.

        ``images`` and ``absent`` [S, C, H, W]: what is seen, and what is in a window instead. It is called with the
        first ``at_once`` places, with the next ones and so on, the last place repeated where there are fewer, for
        ``frozen`` was traced for so many rows. The weights are those of now.
        """
        self._frozen.follow()
        for name, _ in self._rest.named_buffers():
            setattr(self._rest, name, getattr(self._frozen.graph, name))
        group = at_once * max(1, NUMBERS // (at_once * max(step.numbers for step in self._steps)))
        both = torch.cat([images, absent]).contiguous(memory_format=torch.channels_last)
        table = _flat(self._after(both, self._leading))
        tables = [torch.cat([table, table.new_zeros(1, table.shape[1])])]
        for step, behind in zip(self._steps, self._crops[1:], strict=True):
            tables.append(self._table(step, tables[-1], behind, len(images), group))
        lines_of, begun = self._lines_of(len(images), rows, group), -1

        def evaluate(places: Tensor) -> Tensor:
            nonlocal begun
            if (start := int(places[0]) // group * group) != begun:  # the patches of the next group
                begun = start
                for number, (step, lines_TKK) in enumerate(zip(self._steps, lines_of(start), strict=False)):
                    crops = _taken(tables[number], lines_TKK)
                    patches = _flat(self._after(step.convolution.without_padding(crops), step.nodes))
                    tables[number + 1][-len(patches) :] = patches
            return self._rest(_taken(tables[-1], lines_of(start)[-1][places - start]))

        return evaluate

    def _table(self, step: _Step, table: Tensor, behind: _Crop, count: int, group: int) -> Tensor:
        """Return the lines of the maps that a step makes of those in ``table``, one for padding, and room for patches.

        It takes the images one by one, as all groups are of one size: bits may depend on how many there are.
        """
        found, area = None, behind.area
        sides = tuple(axis.length for axis in step.crop.axes)
        for number, lines in enumerate(table[: count * step.crop.area].chunk(count)):
            maps = self._after(lines.unflatten(0, (1, *sides)).permute(0, 3, 1, 2), step.pad)
            lines = _flat(self._after(step.convolution(maps), step.nodes))
            if found is None:
                found = lines.new_zeros(count * area + 1 + group * behind.patch, lines.shape[1])
            found[number * area : (number + 1) * area] = lines
        return found

    def _lines_of(self, count: int, rows: Tensor, group: int) -> Callable[[int], list[Tensor]]:
        """Return the function of the first place of a group that gives the lines of each crop.

        The last ones are kept, and all of them where they are few: the next images have the same.
        """
        rows = torch.cat([rows, rows[-1:].expand(-len(rows) % group, -1)])
        key = count, group, rows.numpy().tobytes()
        if self._lines[0] != key:
            self._lines = key, {}
        known = self._lines[1]

        def find(start: int) -> list[Tensor]:
            if start not in known:
                image_R, window_R = rows[start : start + group].unbind(1)
                if sum(each.numel() for lines in known.values() for each in lines) > MOST_LINES:
                    known.clear()
                known[start] = [
                    _lines(crop, count, image_R, window_R, behind=number > 0) for number, crop in enumerate(self._crops)
                ]
            return known[start]

        return find

    def _after(self, x: Tensor, nodes: list[fx.Node]) -> Tensor:
        for node in nodes:
            previous = x

            def value(found: fx.Node, previous: Tensor = previous) -> Tensor:
                return getattr(self._frozen.graph, found.target) if found.op == "get_attr" else previous

            x = node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))
        return x


def _lines(crop: _Crop, count: int, image_R: Tensor, window_R: Tensor, *, behind: bool) -> Tensor:
    """Return where in a table each place of a crop stands, int64 [R, K, K].

    A table has a line for each place of the maps of ``count`` images, one for padding, and then those of each row's
    patch. The first one, not ``behind`` a convolution, has before the padding the images as they are behind windows.
    """
    (_, wide), area = crop.axes, crop.area
    if not behind:
        padding, width, first_R = 2 * count * area, wide.length, (count + image_R) * area
        bounds = [(axis.low_V, axis.high_V, torch.zeros_like(axis.low_V)) for axis in crop.axes]
    else:
        padding, width = count * area, wide.size
        first_R = padding + 1 + torch.arange(len(window_R)) * crop.patch
        bounds = [(axis.start_V, axis.start_V + axis.size, axis.start_V) for axis in crop.axes]
    known, changed = [], []
    for places_VK, axis, bound in zip(crop.places_VK, crop.axes, bounds, strict=True):
        place_RK, (low_R1, high_R1, origin_R1) = places_VK[window_R], (each[window_R, None] for each in bound)
        known.append(torch.where((place_RK >= 0) & (place_RK < axis.length), place_RK, NOWHERE))
        is_changed = (place_RK >= low_R1) & (place_RK < high_R1)
        changed.append(torch.where(is_changed, place_RK - origin_R1, -NOWHERE))
    known_RKK = known[0][:, :, None] * wide.length + known[1][:, None] + (image_R * area)[:, None, None]
    changed_RKK = changed[0][:, :, None] * width + changed[1][:, None] + first_R[:, None, None]
    return torch.maximum(known_RKK.clamp(max=padding), changed_RKK)  # what is changed stands behind what is known


def _taken(table: Tensor, lines_RKK: Tensor) -> Tensor:
    """Return the crops [R, C, K, K] that ``lines_RKK`` of the table say."""
    return table.index_select(0, lines_RKK.flatten()).unflatten(0, lines_RKK.shape).permute(0, 3, 1, 2)


def _flat(maps: Tensor) -> Tensor:
    """Return maps [n, C, H, W] as lines [n H W, C]."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _how(convolution: PackedConv, pad: list[fx.Node]) -> list[tuple[int, int, int, tuple[int, int]]]:
    """Return kernel, stride, dilation and padding of a convolution along both sides, with that of a node before it."""
    padding, stride, dilation, _ = convolution.how
    left, right, top, bottom = pad[0].args[1] if pad else (0, 0, 0, 0)
    more = ((top, bottom), (left, right))
    both = [(own + before, own + after) for own, (before, after) in zip(padding, more, strict=True)]
    return list(zip(convolution.shape[2:], stride, dilation, both, strict=True))


def _is_zero_padding(node: fx.Node) -> bool:
    """Whether a node puts zeros around the two sides of maps."""
    is_padding = node.target is aten.constant_pad_nd.default and len(node.args[1]) == 4 and min(node.args[1]) >= 0
    return is_padding and (len(node.args) == 2 or node.args[2] == 0)


def _is_elementwise(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether a node does the same at each place of a map, with numbers of its own."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.pointwise not in node.target.tags and node.target.overloadpacket not in ELEMENTWISE:
        return False
    others = [each for each in node.all_input_nodes if each.op == "get_attr"]
    shapes = [(1, 1, 1, 1, *getattr(graph, each.target).shape) for each in others]
    # for all rows and places, and without an axis more
    alike = all(shape[-4] == shape[-2] == shape[-1] == 1 and len(shape) <= 8 for shape in shapes)
    return alike and len(node.all_input_nodes) == len(others) + 1


def _from(graph: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """Return what ``graph`` does with the value of ``last``."""
    new = fx.Graph()
    nodes, begun = {last: new.placeholder("maps")}, False
    for node in graph.graph.nodes:
        if begun or node.op == "get_attr":
            nodes[node] = new.node_copy(node, nodes.__getitem__)
        begun = begun or node is last
    return fx.GraphModule(graph, new)
