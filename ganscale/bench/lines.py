"""What a measurement is: one line, a ratio against a named peer; and how two contenders become one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ganscale.bench.timing import Call, fastest, graphed

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Where and how long to measure. ``quick`` leaves out the larger shapes, the second layout and torch.compile."""

    device: str = "cpu"
    rounds: int = 7
    quick: bool = False

    @property
    def sides(self) -> tuple[int, ...]:
        """Return the sides of the pictures that critics are measured on."""
        return (32,) if self.quick else (32, 64)

    @property
    def layouts(self) -> tuple[str, ...]:
        """Return the memory layouts that are measured; the trainer's own first."""
        return ("nhwc",) if self.quick else ("nhwc", "nchw")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """``peer`` and ``ours`` in ``unit``; ``ratio`` = peer / ours, so above 1 ours is better. A failure has a note."""

    claim: str
    what: str
    shape: str
    dtype: str
    layout: str
    peer: str
    peer_value: float | None
    our_value: float | None
    unit: str = "ms"
    goal: float | None = None
    note: str = ""
    ratio: float | None = field(init=False)
    met: bool | None = field(init=False)

    def __post_init__(self) -> None:
        known = self.peer_value is not None and self.our_value
        ratio = self.peer_value / self.our_value if known else None
        object.__setattr__(self, "ratio", ratio)
        object.__setattr__(self, "met", None if ratio is None or self.goal is None else ratio >= self.goal)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What the lines of one comparison have in common."""

    claim: str
    what: str
    shape: str
    dtype: str = "f32"
    layout: str = "nhwc"

    def line(self, peer: str, peer_value: float | None, our_value: float | None, **more: object) -> Line:
        """Return one line of this case."""
        common = {name: getattr(self, name) for name in ("claim", "what", "shape", "dtype", "layout")}
        return Line(**common, peer=peer, peer_value=peer_value, our_value=our_value, **more)


def compare(
    settings: Settings,
    case: Case,
    *,
    peers: Mapping[str, Call],
    ours: Call,
    goals: Mapping[str, float] | None = None,
    graphs: bool = False,
) -> Iterator[Line]:
    """Time every peer and ours in turns and yield a line a peer, in milliseconds.

    A peer that raises is reported with its reason, because that is a result too; ours must not fail. With ``graphs``,
    on a GPU, the first peer and ours are measured once more as captured CUDA graphs.
    """
    goals, running, failed = goals or {}, {}, {}
    for name, call in peers.items():
        try:
            call()
            running[name] = call
        except Exception as error:
            failed[name] = reason(error)
    best = fastest({**running, "ours": ours}, rounds=settings.rounds, device=settings.device)
    for name in peers:
        if name in failed:
            yield case.line(name, None, 1e3 * best["ours"], note=f"the peer fails: {failed[name]}")
        else:
            yield case.line(name, 1e3 * best[name], 1e3 * best["ours"], goal=goals.get(name))
    if graphs and settings.device == "cuda":
        yield _compare_graphs(settings, case, next(iter(peers.items())), ours)


def _compare_graphs(settings: Settings, case: Case, peer: tuple[str, Call], ours: Call) -> Line:
    name = f"{peer[0]}, both as CUDA graphs"
    replays: dict[str, Callable[[], object]] = {}
    for key, call in (("peer", peer[1]), ("ours", ours)):
        try:
            replays[key] = graphed(call)
        except RuntimeError as error:
            return case.line(name, None, None, note=f"{key} cannot be captured: {reason(error)}")
    best = fastest(replays, rounds=settings.rounds, device="cuda")
    return case.line(name, 1e3 * best["peer"], 1e3 * best["ours"])


def reason(error: BaseException) -> str:
    """Return the first line of what ``error`` says, cut to a length that fits a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}"[:120]
