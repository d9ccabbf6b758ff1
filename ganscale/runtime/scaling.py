"""What more workers bring, by a stated model: memory and exchange of each, time of a step, efficiency. Pure arithmetic.

A step computes on its share of the global batch and sums over all ranks: the statistics of every batch norm of the
generator, forward and backward, and then the gradients of each phase. A sum goes in a ring (Patarasuk and Yuan 2009):
2 (n - 1) messages one after the other, each of 1/n of the bytes,

    t = 2 (n - 1) (latency + bytes / (n bandwidth)),

as our exchange does nothing meanwhile. The slowest link of the ring counts: within a node, or between nodes where there
is more than one. Compute is taken to be proportional to the images, ranks to be equally fast, and reading to keep up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ganscale.config import RunConfig
from ganscale.errors import UserError
from ganscale.training.autoencoding import phases_of

FLOAT = 4  # bytes of a gradient, which is exchanged in float32 in every precision
DOUBLE = 8  # bytes of what batch norms sum


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One connection of the ring: seconds until a message arrives, and bytes a second after that."""

    latency_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        return f"{self.latency_s * 1e6:g} us and {self.bytes_per_s * 8 / 1e9:g} Gbit/s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machines:
    """Where workers live: so many on each node, and the links within a node and between nodes."""

    per_node: int
    inside: Link
    between: Link

    def slowest(self, ranks: int) -> Link:
        """Return the link that a ring over ``ranks`` has to wait for."""
        return self.inside if ranks <= self.per_node else self.between


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """A sum over all ranks: of so many bytes, every so many batches, and then so many times."""

    name: str
    bytes: int
    every: int
    times: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """A step with ``workers`` ranks. Bytes are what each rank sends, and receives, for one batch on average."""

    workers: int
    nodes: int
    batch: int  # images of all ranks
    share: int  # images of the rank that has most
    compute_s: float
    exchange_s: float
    exchange_bytes: float

    @property
    def step_s(self) -> float:
        """One global batch."""
        return self.compute_s + self.exchange_s

    @property
    def images_per_s(self) -> float:
        """All ranks together."""
        return self.batch / self.step_s

    @property
    def efficiency(self) -> float:
        """The share of the workers' time that is spent computing; 1: n workers are n times as fast as one."""
        return self.compute_s * self.batch / (self.share * self.workers) / self.step_s


def ring_s(size: float, ranks: int, link: Link) -> float:
    """Return the seconds of one ring all-reduce of ``size`` bytes."""
    return 2 * (ranks - 1) * (link.latency_s + size / (ranks * link.bytes_per_s))


def ring_bytes(size: float, ranks: int) -> float:
    """Return the bytes that each rank sends in one ring all-reduce of ``size`` bytes."""
    return 2 * (ranks - 1) / ranks * size


def step_sums(config: RunConfig, parameters: Mapping[str, int], norms: Sequence[int], *, workers: int) -> list[Sum]:
    """Return what ``workers`` ranks sum in the phases of a run: gradients, and the statistics of batch norms.

    ``parameters`` counts those of ``generator`` and ``critic``; ``norms`` are the channels of each batch norm of the
    generator: each sums 2C + 1 numbers forward in each pass (``train.micro_batch``) of each phase that generates, and
    2C backward where the generator learns (see ``ops.batch_norm_act``).
    """
    share = -(-config.train.batch // workers)
    passes = -(-share // (config.train.micro_batch or share))
    found = []
    for phase in phases_of(config):
        found.append(Sum(name=phase.name, bytes=FLOAT * parameters[phase.net], every=phase.every))
        for channels in norms if phase.generates else ():
            forward, backward = (DOUBLE * count for count in (2 * channels + 1, 2 * channels))
            how = {"every": phase.every, "times": passes}
            found.append(Sum(name=f"{phase.name}: batch norm", bytes=forward, **how))
            if phase.net == "generator":
                found.append(Sum(name=f"{phase.name}: batch norm, backward", bytes=backward, **how))
    return found


def expect(batch: int, workers: int, *, image_s: float, sums: Sequence[Sum], machines: Machines) -> Expectation:
    """Return what ``workers`` ranks make of a global ``batch``; ``image_s`` is one worker's compute for one image.

    Where the batch does not divide, all wait for those with one image more. Raises UserError where there are more
    workers than images, or a number is not above zero.
    """
    if image_s <= 0:
        raise UserError("the time of a step", "be above 0", image_s, "measure one, or give --step-ms")
    if not 1 <= workers <= batch:
        rule = f"hold an image for each of the {workers} workers"
        raise UserError("train.batch", rule, batch, "use --set train.batch=N")
    share = -(-batch // workers)
    link = machines.slowest(workers)
    return Expectation(
        workers=workers,
        nodes=-(-workers // machines.per_node),
        batch=batch,
        share=share,
        compute_s=share * image_s,
        exchange_s=sum(ring_s(one.bytes, workers, link) * one.times / one.every for one in sums),
        exchange_bytes=sum(ring_bytes(one.bytes, workers) * one.times / one.every for one in sums),
    )


def steps_up_to(workers: int, batch: int, least: int = 1) -> Iterable[int]:
    """Return the sizes to compare: ``least``, doubled sizes that divide the batch, and ``workers``; without a
    ``least``, from one worker on."""
    sizes = [1 << power for power in range(workers.bit_length()) if least < 1 << power < workers]
    return sorted({least, *(size for size in sizes if batch % size == 0), workers})
