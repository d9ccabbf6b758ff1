"""N ranks compute what one process computes on the same global batch: real processes, both ways to sum, float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from rank_cases import WAYS, WORLDS, Case, cases, cases_of, outcome, rank_main

from ganscale.losses import ADVERSARIAL, AUTOENCODING, PENALTIES
from ganscale.training.exchange import buckets
from ganscale.training.process_group import solo_group

# the first test waits for all processes, which on a busy machine take minutes
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]
ROUNDS = [(way, world) for way in WAYS for world in WORLDS]
both_ways = pytest.mark.parametrize(("way", "world"), ROUNDS)


def each_case(most_steps: int) -> pytest.MarkDecorator:
    """Run a test for every case of so many steps, in each way of summing, for each number of ranks."""
    found = [(case, *where) for where in ROUNDS for case in cases_of(where[0]) if case.steps <= most_steps]
    return pytest.mark.parametrize(("case", "way", "world"), found, ids=[f"{c.name}, {w}, {n}" for c, w, n in found])


class Found(dict):
    """A dict whose contents a failing test does not print: that would take longer than the test."""

    def __repr__(self) -> str:
        return f"{len(self)} found"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[dict]]:
    """Return what each rank found, by way and number of ranks; the processes start once for all tests of this file."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, args=(str(folder),), nprocs=max(WORLDS))

    def read(way: str, world: int, rank: int) -> Found:
        return Found(torch.load(folder / f"{way}-{world}-{rank}.pt", weights_only=True))

    return Found({(way, world): [read(way, world, rank) for rank in range(world)] for way in WAYS for world in WORLDS})


@pytest.fixture(scope="module")
def truth() -> dict[str, list[torch.Tensor]]:
    """Return the gradients of one process with the whole batch."""
    return Found({case.name: outcome(case, solo_group("cpu")).gradients for case in cases() if case.steps < 20})


def relative_error(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """Return the largest error of a phase's gradients in that phase's largest gradient."""
    assert len(found) == len(truth)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, truth, strict=True))


def test_every_loss_with_every_penalty_is_a_case():
    assert {case.config.loss.name for case in cases()} == {*ADVERSARIAL, *AUTOENCODING}
    assert {case.config.penalty.name for case in cases()} == {*PENALTIES, "none"}
    for way in WAYS:
        names = [case.name for case in cases_of(way)]
        assert len(set(names)) == len(names)
        assert sum("," in name and "fused" in name for name in names) >= len(ADVERSARIAL) * len(PENALTIES)


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty_is_a_case_in_bf16_and_most_of_its_gradient(truth, penalty: str, impl: str):
    with_it, without = (truth[f"bf16 {name}"][0] for name in (f"{penalty} {impl}", "none reference"))
    assert (with_it - without).norm() > 2 * without.norm()


@each_case(most_steps=19)
def test_ranks_sum_to_the_gradients_of_one_process(found, truth, case: Case, way: str, world: int):
    gradients, _ = found[way, world][0]["outcomes"][case.name]
    # float64 sums in another order differ by some 1e-16 of scale; a second step's weights by 1e-12, as Adam moves one
    # whose gradient is rounding alone (1e-17) by lr * 1e-17 / eps. bf16 keeps 8 bits, so any sum may differ by 2^-8.
    assert relative_error(gradients, truth[case.name]) <= (1e-10 if case.bits == 64 else 2**-6)


@each_case(most_steps=20)
def test_all_ranks_hold_the_same_bits(found, case: Case, way: str, world: int):
    first, *others = (rank["outcomes"][case.name] for rank in found[way, world])
    for gradients, weights in others:
        assert all(torch.equal(a, b) for a, b in zip(gradients, first[0], strict=True))
        assert all(torch.equal(weights[name], first[1][name]) for name in first[1])


@both_ways
def test_a_gradient_that_some_ranks_lack_counts_as_zero_there(found, way: str, world: int):
    for rank in found[way, world]:
        for sums in rank["sums"]:
            for index, total in enumerate(sums):
                factor = sum(10.0**r for r in range(world) if r != index)
                counted = torch.arange(total.numel(), dtype=total.dtype).view(total.shape)
                assert torch.equal(total, counted * factor)


@both_ways
@pytest.mark.parametrize(("net", "guilty"), [("critic", 1), ("generator", -1), ("generator", 0)])
def test_a_network_altered_on_one_worker_ends_the_run_and_is_named(found, net: str, guilty: int, way: str, world: int):
    guilty %= world
    accused, other = (1, 0) if world == 2 else (guilty, int(guilty == 0))  # of two, nobody knows which one is right
    for number, rank in enumerate(found[way, world]):
        message = rank["drift"][net, guilty]
        assert f"the {net} of worker {accused} is no longer that of worker {other}" in message
        assert ("if anything was saved, go on with" if number else "nothing was saved yet") in message  # rank 0 saves


@both_ways
def test_workers_that_agree_train_to_the_end(found, way: str, world: int):
    assert {rank["drift"]["critic", -1] for rank in found[way, world]} == {""}


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1, 1, 1, 1]), (24, [2, 1, 1]), (32, [2, 1, 1]), (1000, [3, 1])])
def test_buckets_keep_the_order_the_limit_and_one_type(limit: int, sizes: list[int]):
    made = [torch.nn.Parameter(torch.zeros(n)) for n in (4, 2, 100)]
    made.append(torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    found = list(buckets(made, limit))
    assert [len(bucket) for bucket in found] == sizes
    assert [id(p) for bucket in found for p in bucket] == [id(p) for p in made]
