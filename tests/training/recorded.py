"""A CUDA graph for the CPU: records which operators a function calls and on what, and calls them again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ganscale.training.cuda_graphs import WARM_UPS, Body, Outputs

# What makes the host wait for values of a GPU, or copies a number of the host there: neither may be captured.
WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "lift_fresh"}


class Tape(TorchDispatchMode):
    """Writes down each operator that is called; raises where a capture would."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITS, f"{name} inside of a capture"
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        """Call them again: every tensor keeps its place, every number is the one of then."""
        for func, args, kwargs, found in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


def record(body: Body) -> Body:
    """As ``capture`` of ``ganscale.training.cuda_graphs``, for a CPU on which plain torch is asked for."""
    for _ in range(WARM_UPS):
        body()
    with Tape() as tape:
        outputs = body()

    def replay() -> Outputs:
        tape.replay()
        return outputs

    return replay
