"""What must hold of the numbers of a run: gradients are finite, and all ranks hold the same networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ganscale.errors import NonFiniteError, RunFailed
from ganscale.training.process_group import Group

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
_LOW = (1 << 32) - 1


def finite_norm(net: nn.Module, name: str, phase: str, images: int) -> float:
    """Return the norm of all gradients of ``net``; raises NonFiniteError that names the first that is not finite."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([p.grad for p in net.parameters()]))).item()
    if not norm < float("inf"):  # true for NaN as well
        guilty = [key for key, p in net.named_parameters() if not p.grad.isfinite().all()]
        raise NonFiniteError(
            f"the gradient of {name}.{guilty[0] if guilty else '(norm)'} is not finite in phase {phase} at {images} "
            f"images; no parameter was changed by it; lower optim.{name}.lr or raise penalty.weight"
        )
    return norm


def fingerprints(nets: Mapping[str, nn.Module], group: Group) -> Tensor:
    """Return float64 [ranks, nets, 2]: this rank's row holds 64 bits of each network in two halves, others are zero.

    Summed over ranks it is the table of all. The bits change with any single bit of a parameter or a buffer, and but
    for one case in 2^64 with any other change. Sums of integers: no order, no memory layout and no device matters.
    """
    table = torch.zeros(group.size, len(nets), 2, dtype=torch.float64, device=group.device)
    if group.size > 1:
        table[group.rank] = torch.stack([_fingerprint(net) for net in nets.values()])
    return table


def refuse_drift(table: Tensor, names: list[str]) -> None:
    """Raise RunFailed where ranks differ; names a network and the ranks that are not as most are, or as rank 0."""
    for name, rows in zip(names, table.transpose(0, 1).tolist(), strict=True):
        column = [tuple(row) for row in rows]
        count = Counter(column)  # in the order of ranks, so rank 0 is right where numbers are even
        if len(count) > 1:
            common = count.most_common(1)[0][0]
            odd = [str(rank) for rank, value in enumerate(column) if value != common]
            raise RunFailed(
                f"the {name} of worker {', '.join(odd)} is no longer that of worker {column.index(common)}, though all "
                "make the same updates; a number was altered on one of them, by its device, its memory or a transfer"
            )


def _fingerprint(net: nn.Module) -> Tensor:
    tensors = [*net.parameters(), *net.buffers()]
    sums = torch.stack([t.detach().view(_INTEGERS[t.element_size()]).sum(dtype=torch.int64) for t in tensors])
    # the sum of bits wraps around as it may; each tensor's is turned by an odd number of its own, so that what one
    # gains does not make up for what another loses
    factors = torch.arange(len(tensors), dtype=torch.int64, device=sums.device) * 0x2545F4914F6CDD1E + 1
    bits = (sums * factors).sum()
    return torch.stack([bits & _LOW, (bits >> 32) & _LOW]).double()  # float64 holds whole numbers up to 2^53
