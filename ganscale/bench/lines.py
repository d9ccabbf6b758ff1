"""What a measurement is: one line, a ratio against a named peer; and how two contenders become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ganscale.bench.timing import Call, fastest, graphed

BY_NAME = ", impl=fused"  # ends the name of what impl="auto", which users have, would leave to torch
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
    def batches(self) -> tuple[int, ...]:
        """Return the batch sizes that critics are measured at; 64 pictures do not fill a GPU."""
        return (64, 256) if self.device == "cuda" else (64,)

    @property
    def layouts(self) -> tuple[str, ...]:
        """Return the memory layouts that are measured; the trainer's own first."""
        return ("nhwc",) if self.quick else ("nhwc", "nchw")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """``peer`` and ``ours`` in ``unit``; ``ratio`` = peer / ours, so above 1 ours is better.

    ``failed`` marks what should have been measured and could not, or must not be compared; ``note`` says why.
    """

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
    failed: bool = False
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


def tolerance(dtype: str, device: str) -> float:
    """Return by how much of their norm equal results may differ: other orders of summation, single flips of a ReLU at
    0, and products with the digits of the type (on a GPU float32 convolutions may be TF32, with 10 bits).
    """
    return 0.1 if dtype == "bf16" else 1e-2 if device == "cuda" else 1e-3


def compare(
    settings: Settings,
    case: Case,
    *,
    peers: Mapping[str, Call],
    ours: Call,
    goals: Mapping[str, float] | None = None,
    tolerance: float | None = None,
    graphs: bool = False,
) -> Iterator[Line]:
    """Time every peer and ours in turns and yield a line a peer, in milliseconds.

    With a ``tolerance`` the tensors that ours and the first peer return must agree, else nothing is timed. A peer that
    raises is reported with its reason, because that is a result too; where ours raises, the line is a failure. With
    ``graphs``, on a GPU, the first peer and ours are measured once more as captured CUDA graphs.
    """
    goals, first = goals or {}, next(iter(peers))
    try:
        result = ours()
        if tolerance is not None:
            check_agreement(result, peers[first](), tolerance)
        del result
    except Exception as error:
        yield case.line(first, None, None, note=reason(error), failed=True)
        return
    failures = {name: reason(error) for name, call in peers.items() if (error := _raised(call))}
    running = {name: call for name, call in peers.items() if name not in failures}
    best = fastest({**running, "ours": ours}, rounds=settings.rounds, device=settings.device)
    for name in peers:
        if name in failures:
            yield case.line(name, None, 1e3 * best["ours"], note=f"the peer fails: {failures[name]}")
        else:
            yield case.line(name, 1e3 * best[name], 1e3 * best["ours"], goal=goals.get(name))
    if graphs and settings.device == "cuda" and first in running:
        yield _compare_graphs(settings, case, (first, running[first]), ours)


def check_agreement(ours: Iterable[Tensor], peer: Iterable[Tensor], tolerance: float) -> None:
    """A comparison of times means nothing where the results differ: raises AssertionError then."""
    for mine, theirs in zip(ours, peer, strict=True):
        error = float((mine.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-12))
        if not error < tolerance:
            raise AssertionError(f"the contenders differ by {error:.1e} of their norm, more than {tolerance}")


def _raised(call: Call) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _compare_graphs(settings: Settings, case: Case, peer: tuple[str, Call], ours: Call) -> Line:
    name = f"{peer[0]}, both as CUDA graphs"
    replays: dict[str, Callable[[], object]] = {}
    for key, call in (("peer", peer[1]), ("ours", ours)):
        try:
            replays[key] = graphed(call)
        except RuntimeError as error:
            note = f"{key} cannot be captured: {reason(error)}"
            return case.line(name, None, None, note=note, failed=key == "ours")
    best = fastest(replays, rounds=settings.rounds, device="cuda")
    return case.line(name, 1e3 * best["peer"], 1e3 * best["ours"])


def reason(error: BaseException) -> str:
    """Return the first line of what ``error`` says, cut to a length that fits a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}"[:120]
