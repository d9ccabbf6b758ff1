"""Laws of what is compared over ranks at every tick: any altered bit shows, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganscale.errors import RunFailed
from ganscale.training.process_group import Group, solo_group
from ganscale.training.soundness import fingerprints, refuse_drift

pytestmark = pytest.mark.distributed
TWO = Group(rank=1, size=2, device=torch.device("cpu"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4).double(), nn.Linear(4, 4).bfloat16())


def number(net: nn.Module) -> list[float]:
    return fingerprints({"net": net}, TWO)[1, 0].tolist()


def tensors(net: nn.Module) -> list[torch.Tensor]:
    return [t.detach() for t in (*net.parameters(), *net.buffers())]


@pytest.mark.parametrize("index", range(len(tensors(network()))))
def test_the_number_changes_with_the_lowest_and_the_highest_bit_of_every_tensor(index: int):
    net = network()
    before = number(net)
    altered = tensors(net)[index].view(-1)
    bits = altered.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[altered.element_size()])
    for bit in (0, 8 * bits.element_size() - 2):
        bits[-1] ^= 1 << bit
        assert number(net) != before
        bits[-1] ^= 1 << bit
        assert number(net) == before


def test_what_one_tensor_gains_does_not_make_up_for_what_another_loses():
    net = network()
    before = number(net)
    weight, bias = (tensors(net)[i].view(-1).view(torch.int32) for i in (0, 1))
    weight[0] += 1
    bias[0] -= 1
    assert number(net) != before


def test_the_number_does_not_depend_on_memory_layout():
    net = network()
    before = number(net)
    assert number(net.to(memory_format=torch.channels_last)) == before


def test_each_rank_fills_its_own_row_alone():
    table = fingerprints({"a": network(), "b": network()}, TWO)
    assert table.shape == (2, 2, 2)
    assert not table[0].any()
    assert torch.equal(table[1, 0], table[1, 1])
    assert torch.equal(table[1], table[1].long().double())  # whole, so that adding the zeros of others leaves it exact
    assert 0 < table[1].max() < 2**32


def test_one_process_has_nobody_to_differ_from():
    group = solo_group("cpu")
    table = fingerprints({"net": network()}, group)
    assert not table.any()
    refuse_drift(table, ["net"])


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([7.0, 8.0], "the critic of worker 1 is no longer that of worker 0"),
        ([8.0, 7.0, 7.0], "the critic of worker 0 is no longer that of worker 1"),
        ([7.0, 7.0, 8.0, 9.0, 7.0], "the critic of worker 2, 3 is no longer that of worker 0"),
    ],
)
@pytest.mark.parametrize("half", [0, 1])
def test_those_that_differ_from_most_are_named(half: int, column: list[float], said: str):
    alike = torch.ones(len(column), 2, dtype=torch.float64)
    table = torch.stack([alike, alike.index_copy(1, torch.tensor([half]), torch.tensor([column]).double().T)], dim=1)
    with pytest.raises(RunFailed, match=said):
        refuse_drift(table, ["generator", "critic"])
    refuse_drift(table[:, :1], ["generator"])
