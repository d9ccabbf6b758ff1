"""Placement on several nodes: a worker is never spread over two of them, and none is planned that finds no place."""

from __future__ import annotations

import itertools

import pytest

from ganscale.config import override
from ganscale.errors import ResourceError
from ganscale.presets import preset
from ganscale.runtime.placement import CPUS_PER_GPU, Resources, place

pytestmark = pytest.mark.distributed
CONFIG = override(preset("dcgan-fashion"), {"train.batch": 720})  # divisible by all counts below


def cluster(*nodes: tuple[int, int]) -> Resources:
    return Resources(
        cpus=sum(cpus for cpus, _ in nodes),
        gpus=sum(gpus for _, gpus in nodes),
        memory_bytes=None,
        where="the cluster",
        nodes=nodes,
    )


@pytest.mark.parametrize(
    ("nodes", "asked", "threads"),
    [
        (((2, 0), (3, 0)), {"workers": 1}, 3),  # not the 5 that they have together
        (((2, 0), (3, 0)), {"workers": 2}, 2),
        (((2, 0), (3, 0)), {"workers": 5}, 1),
        (((8, 0),), {"workers": 2}, 4),
        (((0, 0), (32, 4), (32, 4)), {"gpus": 8}, 8),  # a head that holds no worker
        (((4, 4), (32, 4)), {"gpus": 8}, 1),  # the small node sets the measure
        (((4, 4), (32, 4)), {"gpus": 4}, CPUS_PER_GPU),
        (((6, 0), (6, 0)), {"workers": 3}, 3),  # 4 each would leave the third without a place
    ],
)
def test_threads_are_those_that_a_node_can_give(nodes, asked, threads):
    assert place(CONFIG, cluster(*nodes), **asked).threads == threads


@pytest.mark.parametrize("nodes", list(itertools.product([(1, 0), (3, 1), (7, 2)], repeat=2)))
def test_what_is_planned_finds_a_place(nodes):
    there = cluster(*nodes)
    for workers in (1, 2, 3, 4, 5, 6, 8, 9, 10, 12):
        if workers <= there.cpus:
            plan = place(CONFIG, there, workers=workers, gpus=0)
            assert there.seats(plan.threads, on_gpu=False) >= workers
    for gpus in range(1, there.gpus + 1):
        plan = place(CONFIG, there, gpus=gpus)
        assert there.seats(plan.threads, on_gpu=True) >= gpus


def test_gpus_of_a_node_without_cores_for_them_are_refused_with_what_would_work():
    with pytest.raises(ResourceError) as caught:
        place(CONFIG, cluster((1, 4), (64, 4)), gpus=8)
    assert str(caught.value) == (
        "the number of workers must be at most 5, as each needs a GPU and a core of one node of the cluster, got 8; "
        "use --gpus 5"
    )
    assert place(CONFIG, cluster((1, 4), (64, 4)), gpus=5).workers == 5


def test_one_machine_is_one_node():
    alone = Resources(cpus=12, gpus=2, memory_bytes=None, where="this machine")
    assert alone.seats(5, on_gpu=False) == 2
    assert alone.seats(5, on_gpu=True) == 2
    assert alone.seats(7, on_gpu=True) == 1
