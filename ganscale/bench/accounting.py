"""Claims about the penalty that no clock is needed for: its peak memory, and how many convolutions it runs.

Both are read off torch's profiler, which sees the inside of custom operators as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from ganscale import ops
from ganscale.bench.lines import Case, Line, Settings
from ganscale.bench.peers import textbook_penalty
from ganscale.bench.penalty import BATCH, EAGER, gradients, setting

MEMORY, COUNTS = "memory", "counts"
MEMORY_GOAL = 2.5  # the peer's peak over ours: at most 0.4 of it
FORWARD, BACKWARD = "aten::convolution", "aten::convolution_backward"


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Return the most bytes of tensors that were alive at once inside ``call``, above those alive before it.

    On the CPU every allocation and release of torch's allocator is added up in its order; what a library takes from
    malloc by itself (oneDNN's scratch memory) is not in it. On a GPU the allocator keeps the number itself.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    del kept
    alive = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def convolutions(call: Callable[[], object]) -> Counter[str]:
    """Return how often ``call`` ran a convolution forward, and backward (for data, weights or both)."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    names = Counter(event.name() for event in profiler.profiler.kineto_results.events())
    return Counter({FORWARD: names[FORWARD], BACKWARD: names[BACKWARD]})


def penalty_calls(
    side: int, device: str, *, batch: int = BATCH, dtype: torch.dtype = torch.float32
) -> dict[str, Callable[[], object]]:
    """Return the penalty with its weight gradients by the peer and by us."""
    critic, x = (part.to(dtype) for part in setting(side, "nhwc", device, batch=batch))
    return {
        "peer": lambda: gradients(lambda x: textbook_penalty(critic, x), critic, x, "f32"),
        "ours": lambda: gradients(lambda x: ops.gradient_penalty(critic, x, impl="fused"), critic, x, "f32"),
    }


def measure_memory(settings: Settings) -> Iterator[Line]:
    """Yield the peak memory of the penalty with its weight gradients, in MB."""
    for side in settings.sides:
        peaks = {}
        for name, call in penalty_calls(side, settings.device).items():
            call()  # what is made once and kept is no part of the peak
            peaks[name] = peak_bytes(call, settings.device) / 1e6
        case = Case(claim=MEMORY, what="penalty + weight gradients, peak", shape=f"{BATCH}x3x{side}x{side}")
        yield case.line(EAGER, peaks["peer"], peaks["ours"], unit="MB", goal=MEMORY_GOAL)


def measure_counts(settings: Settings) -> Iterator[Line]:
    """Yield the convolutions, forward and backward, of the penalty with its weight gradients.

    In float64, whose convolutions are all torch's: in float32 some are products of matrices, which are not counted.
    """
    for side in settings.sides:
        calls = penalty_calls(side, settings.device, batch=2, dtype=torch.float64)
        found = {name: convolutions(call) for name, call in calls.items()}
        for kind, words in ((FORWARD, "convolutions"), (BACKWARD, "convolution backwards")):
            case = Case(
                claim=COUNTS, what=f"penalty + weight gradients, {words}", shape=f"2x3x{side}x{side}", dtype="f64"
            )
            yield case.line(EAGER, float(found["peer"][kind]), float(found["ours"][kind]), unit="calls")
