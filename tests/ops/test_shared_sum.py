"""Sums through shared memory: against the sum of what the ranks hold, and what becomes of a rank that does not come."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ganscale.ops import shared_sum
from ganscale.ops.shared_sum import SharedSum, create_file

pytestmark = pytest.mark.distributed


# within a slot, a whole slot, several; below and above what each rank adds wholly; unequal shares
SIZES = (1, 7, 4096, 4097, 65536, 65537, 200_003)


def _mine(rank: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1000 * rank + size), dtype=dtype)


def _sum_all(path: str, rank: int, size: int, folder: Path, meet: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    shared = SharedSum(path, rank, size, timeout_s=60)
    meet()
    sums = []
    for _ in range(3):
        for count in SIZES:
            for dtype in (torch.float32, torch.float64):
                x = _mine(rank, count, dtype)
                shared.sum_(x)
                sums.append(x)
    torch.save(sums, folder / f"{rank}.pt")


def _stay_away(path: str, rank: int, size: int, folder: Path, meet: Callable[[], None], timeout_s: float) -> None:
    shared = SharedSum(path, rank, size, timeout_s=timeout_s)
    meet()
    x = torch.ones(3)
    shared.sum_(x)
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    if rank == 1:
        signal.pause()
    began = time.monotonic()
    try:
        shared.sum_(x)
    except ConnectionError as error:
        (folder / f"{rank}.json").write_text(json.dumps([str(error), time.monotonic() - began]))


def _unequal(path: str, rank: int, size: int, folder: Path, meet: Callable[[], None]) -> None:
    shared = SharedSum(path, rank, size, timeout_s=60)
    meet()
    try:
        shared.sum_(torch.ones(3 + rank))
    except ValueError as error:
        (folder / f"{rank}.json").write_text(json.dumps(str(error)))


class _Ranks:
    """Processes that run ``main`` as ranks on a file of their own."""

    def __init__(self, main: Callable[..., None], size: int, folder: Path, *more: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.path, barrier = create_file(), context.Barrier(size + 1)
        self.processes = [
            context.Process(target=main, args=(self.path, rank, size, folder, barrier.wait, *more), daemon=True)
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()
        barrier.wait(timeout=120)
        os.unlink(self.path)

    def join(self) -> list[int | None]:
        for process in self.processes:
            process.join(timeout=120)
        return [process.exitcode for process in self.processes]


def _wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 120
    while not all(path.is_file() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, paths
        threading.Event().wait(0.01)


@pytest.mark.parametrize("size", [2, 5])
def test_every_rank_gets_the_same_bits_which_are_the_sum_in_the_order_of_the_ranks(size: int, tmp_path: Path):
    assert _Ranks(_sum_all, size, tmp_path).join() == [0] * size
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    cases = [(count, dtype) for _ in range(3) for count in SIZES for dtype in (torch.float32, torch.float64)]
    for index, (count, dtype) in enumerate(cases):
        wanted = _mine(0, count, dtype)
        for rank in range(1, size):
            wanted = wanted + _mine(rank, count, dtype)
        for rank in range(size):
            assert torch.equal(found[rank][index], wanted), (count, dtype, rank)


def test_a_rank_that_dies_is_named_at_once_by_those_who_wait_for_it(tmp_path: Path):
    ranks = _Ranks(_stay_away, 3, tmp_path, 600.0)
    _wait_for(*(tmp_path / f"{rank}.pid" for rank in range(3)))
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    assert ranks.join() == [0, -signal.SIGKILL, 0]
    for rank in (0, 2):
        words, waited = json.loads((tmp_path / f"{rank}.json").read_text())
        # the one who sees the death first ends too, and is what the other one may see
        assert words in (f"rank 1 has died, says rank {rank}", f"rank {2 - rank} has died, says rank {rank}")
        assert waited < 60


def test_a_rank_that_stands_still_is_named_after_the_timeout(tmp_path: Path):
    ranks = _Ranks(_stay_away, 2, tmp_path, 5.0)
    _wait_for(tmp_path / "0.json")
    words, waited = json.loads((tmp_path / "0.json").read_text())
    assert words == "rank 1 must come to a sum within 5 s, says rank 0"
    assert 5 <= waited < 60
    ranks.processes[1].kill()
    ranks.join()


def test_sums_of_unequal_size_are_refused_instead_of_mixed(tmp_path: Path):
    _Ranks(_unequal, 2, tmp_path).join()
    for rank in range(2):
        words = json.loads((tmp_path / f"{rank}.json").read_text())
        assert words.startswith("all ranks must sum the same number of bytes, got ")


def test_nothing_stays_in_memory_and_a_path_that_is_none_is_refused(tmp_path: Path, monkeypatch):
    memory = tmp_path / "memory"  # of our own: other processes make files in the real one
    memory.mkdir()
    monkeypatch.setattr(shared_sum, "MEMORY", memory)
    assert Path(create_file()).parent == memory
    for path in memory.iterdir():
        path.unlink()
    _Ranks(_unequal, 2, tmp_path).join()
    assert list(memory.iterdir()) == []
    with pytest.raises(RuntimeError, match="opening must be possible for /nowhere/at/all, got: No such file"):
        SharedSum("/nowhere/at/all", 0, 2, timeout_s=1)
    with pytest.raises(ValueError, match=r"ranks must be 0 \.\. size - 1"):
        SharedSum("/nowhere/at/all", 2, 2, timeout_s=1)


def test_other_types_are_refused(tmp_path: Path):
    path = create_file()
    shared = SharedSum(path, 0, 2, timeout_s=1)
    os.unlink(path)
    with pytest.raises(ValueError, match="data must be float32 or float64"):
        shared.sum_(torch.ones(3, dtype=torch.bfloat16))
