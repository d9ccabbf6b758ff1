"""Comparing callables fairly on a noisy machine: interleaved rounds, the minimum of each, process time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]
GRAPH_WARM_UPS = 3  # runs before a capture: they load kernels and make the workspaces that a capture must not make


def _cpu_seconds(call: Call, calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


def _cuda_seconds(call: Call, calls: int) -> float:
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(calls):
        call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / calls / 1e3


def fastest(
    contenders: Mapping[str, Call],
    *,
    rounds: int = 15,
    round_s: float = 0.02,
    device: str = "cpu",
) -> dict[str, float]:
    """Return the least seconds a call of each contender took, over ``rounds`` turns of about ``round_s`` each.

    Contenders take turns, so that a slow moment of the machine hits all of them. A turn begins with a call that is not
    timed: what the one before left in the caches is neither's doing. On the CPU the clock is process time (all threads
    added up), on a GPU the device's own events.
    """
    measure = _cuda_seconds if device == "cuda" else _cpu_seconds
    calls = {}
    for name, call in contenders.items():
        call()
        calls[name] = max(1, int(round_s / max(measure(call, 1), 1e-7)))
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, call in contenders.items():
            call()
            best[name] = min(best[name], measure(call, calls[name]))
    return best


def graphed(call: Call) -> Call:
    """Return the replay of ``call`` captured in a CUDA graph; raises RuntimeError where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(kept: object = kept) -> None:  # the graph writes into what it returned, so that has to stay alive
        graph.replay()

    return replay
