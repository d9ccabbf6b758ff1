"""What a traced critic is to the fused penalty: a list of nodes, each (piecewise) linear in x, sample by sample.

A program holds plain numbers only and no batch size. Its text determines it wholly, so that an operator can carry it
as a string argument; ``parse`` keeps the programs of recent texts.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

TRANSPARENT = ("add", "shift", "reshape")  # where shapes agree, the adjoint of an input is that of the output


class Node(NamedTuple):
    """One step; ``inputs`` are values, where value 0 is x and value k the output of the k-th node, counted from 1."""

    kind: str
    inputs: tuple[int, ...]
    tensors: tuple[int, ...]  # what it reads that does not depend on x, by position among the operator's tensors
    options: tuple
    shape: tuple[int, ...]  # of one sample of its output


class Step(NamedTuple):
    """A node in an order of evaluation, the inputs that nobody reads after it, and whether anybody reads its output."""

    value: int
    node: Node
    last: frozenset[int]
    read_later: bool


@dataclass(frozen=True)
class Program:
    """Nodes up to the one whose output is the critic's; every node contributes to that output."""

    nodes: tuple[Node, ...]
    sample: tuple[int, ...]  # the shape of one sample of x

    def shape(self, value: int) -> tuple[int, ...]:
        return self.nodes[value - 1].shape if value else self.sample

    @functools.cached_property
    def forward_steps(self) -> tuple[Step, ...]:
        """What the masks need: an activation that no other one depends on ends its branch."""
        return self._steps(self._ancestors(self.acts))

    @functools.cached_property
    def acts(self) -> tuple[int, ...]:
        """The activations, by their output."""
        return tuple(k for k, node in enumerate(self.nodes, 1) if node.kind == "act")

    def tangent_steps(self, wanted: tuple[int, ...]) -> tuple[Step, ...]:
        """The nodes with a weight among the ``wanted`` tensors, and what the tangents of their inputs need."""
        if wanted not in self._tangents:
            nodes = enumerate(self.nodes, 1)
            readers = [k for k, node in nodes if node.kind in PARAMETRIC and node.tensors[0] in wanted]
            self._tangents[wanted] = self._steps(self._ancestors(readers))
        return self._tangents[wanted]

    @functools.cached_property
    def _tangents(self) -> dict[tuple[int, ...], tuple[Step, ...]]:
        return {}

    @functools.cached_property
    def reuse(self) -> float:
        """Outputs of convolutions of one sample, for each weight of theirs; 0 without convolutions."""
        convolutions = [(node.shape, node.options[-1]) for node in self.nodes if node.kind == "conv"]
        weights = sum(size for _, size in convolutions)
        return sum(math.prod(shape) for shape, _ in convolutions) / weights if weights else 0.0

    @functools.cached_property
    def roots(self) -> tuple[int, ...]:
        """For each value the value whose adjoint it shares, which is itself unless its only reader is transparent."""
        readers: list[list[int]] = [[] for _ in range(len(self.nodes) + 1)]
        for k, node in enumerate(self.nodes, 1):
            for value in node.inputs:
                readers[value].append(k)
        roots = list(range(len(self.nodes) + 1))
        for value in reversed(range(len(self.nodes))):
            if len(readers[value]) == 1 and self._passes(self.nodes[readers[value][0] - 1], value):
                roots[value] = roots[readers[value][0]]
        return tuple(roots)

    @functools.cached_property
    def kept(self) -> tuple[int, ...]:
        """The values whose adjoints the weight gradients need."""
        return tuple(sorted({self.roots[k] for k, node in enumerate(self.nodes, 1) if node.kind in PARAMETRIC}))

    def _passes(self, node: Node, value: int) -> bool:
        if node.kind not in TRANSPARENT:
            return False
        return node.kind == "reshape" or node.shape == self.shape(value)

    def _ancestors(self, values: Iterable[int]) -> set[int]:
        found, waiting = set(), list(values)
        while waiting:
            value = waiting.pop()
            if value and value not in found:
                found.add(value)
                waiting += self.nodes[value - 1].inputs
        return found

    def _steps(self, values: set[int]) -> tuple[Step, ...]:
        seen: set[int] = set()
        steps = []
        for value in sorted(values, reverse=True):
            node = self.nodes[value - 1]
            steps.append(Step(value, node, frozenset(node.inputs) - seen, value in seen))
            seen.update(node.inputs)
        return tuple(reversed(steps))


PARAMETRIC = ("conv", "linear", "mul")  # nodes with a tensor that the gradient g depends on smoothly


def _tuples(item: object) -> object:
    return tuple(_tuples(part) for part in item) if isinstance(item, list) else item


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """Read what ``write`` wrote."""
    sample, nodes = json.loads(text)
    return Program(tuple(Node(*_tuples(node)) for node in nodes), _tuples(sample))


def write(nodes: Sequence[Node], sample: Sequence[int], output: int) -> tuple[str, tuple[int, ...]]:
    """Return the text of the nodes that value ``output`` depends on, and which tensors they read, in their new order.

    The output becomes the last node. Nodes keep their order, values and tensors are numbered anew.
    """
    needed = Program(tuple(nodes), tuple(sample))._ancestors([output])
    values, tensors = {0: 0}, {}
    kept = []
    for value in sorted(needed):
        node = nodes[value - 1]
        values[value] = len(values)
        reads = [tensors.setdefault(t, len(tensors)) for t in node.tensors]
        kept.append([node.kind, [values[i] for i in node.inputs], reads, node.options, node.shape])
    return json.dumps([list(sample), kept]), tuple(tensors)
