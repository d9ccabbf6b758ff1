"""Laws of the question whether to stop: one answer for all ranks at one step, asked about once a second."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ganscale.training.process_group import solo_group, torch_group
from ganscale.training.pulse import Pulse

pytestmark = pytest.mark.distributed
STEPS, STOP_AT = 4000, 700


def _rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    group, step, asked = torch_group("cpu"), 0, []

    def should_stop() -> bool:
        asked.append(step)
        return rank == 1 and step >= STOP_AT  # only the other rank wants to

    pulse = Pulse(group, should_stop, every_s=0.1)  # far above what a busy machine takes for a step
    stopped = None
    for step in range(STEPS):
        torch.randn(10_000 * (1 + rank)).sum()  # ranks of unequal speed; nothing but the pulse holds them together
        if pulse.beat():
            stopped = step
            break
    Path(folder, f"{rank}.json").write_text(json.dumps([stopped, asked]))
    dist.destroy_process_group()


def test_ranks_of_unequal_speed_ask_at_the_same_steps_and_stop_at_the_same_one(tmp_path: Path):
    mp.spawn(_rank_main, args=(str(tmp_path),), nprocs=2)
    (stopped, asked), other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert [stopped, asked] == other
    assert stopped is not None
    assert stopped >= STOP_AT
    steps = [after - before for before, after in itertools.pairwise([-1, *asked])]
    assert asked[0] == 0  # after the first step, then at most twice as many steps as before
    assert all(1 <= after <= 2 * before for before, after in itertools.pairwise(steps))
    assert len(asked) < STOP_AT / 2


def test_one_process_is_asked_as_often_as_wanted_after_doubling_steps(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr("ganscale.training.pulse.time.perf_counter", lambda: now[0])
    pulse = Pulse(solo_group("cpu"), lambda: bool(asked.append(now[0])), every_s=1.0)
    for _ in range(1000):
        now[0] += 1 / 64
        assert not pulse.beat()
    steps = [round(64 * (after - before)) for before, after in itertools.pairwise([0.0, *asked])]
    assert steps[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert set(steps[7:]) == {64}
    assert len(steps) == 7 + (1000 - 127) // 64
