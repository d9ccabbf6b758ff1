"""The benchmark of scaling: contenders take turns, train to the same bits, and are held against each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.exchanges import WAYS
from benchmarks.scaling import ALONE, TWO_ALONE, Contender, Window, check, table
from ganscale.training import solo_group

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parent.parent.parent


def test_two_processes_measure_all_ways_and_find_the_same_weights():
    command = [sys.executable, "-m", "benchmarks.scaling", "--only", "wgan-gp-64"]
    command += ["--rounds", "2", "--window-s", "0.01", "--batch", "4", "--width", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    expected = [("-", ALONE), ("weak", TWO_ALONE)]
    expected += [(scaling, name) for scaling in ("weak", "strong") for name in WAYS]
    assert [(row[0], row[1]) for row in rows] == expected
    assert all(float(cell) > 0 for row in rows for cell in row[2:])
    assert rows[0][-3:] == ["1.000"] * 3
    assert len(re.findall("the speed of ours", done.stdout)) == 2


def contender(name: str, images: int, *walls: float, weights: float = 0.0, scaling: str = "weak") -> Contender:
    windows = [Window(wall, wall) for wall in walls]
    return Contender(name, scaling, images, lambda batches: None, lambda: torch.tensor([weights]), windows)


def test_efficiency_is_the_work_of_two_over_twice_that_of_one():
    one = contender(ALONE, 8, 0.1, 0.2, scaling="")
    weak = contender("ours", 16, 0.125, 0.2), contender("peer", 16, 0.25, 0.3)
    strong = contender("ours", 8, 0.0625, 0.1, scaling="strong")
    lines = list(table([one, *weak, strong]))
    cells = [line.strip("| ").split(" | ") for line in lines[2:6]]
    assert [row[-3:-1] for row in cells] == [
        ["1.000", "1.000"],
        ["0.800", "0.900"],
        ["0.400", "0.533"],
        ["0.800", "0.900"],
    ]
    assert [row[-1] for row in cells] == [row[-2] for row in cells]  # these processes never wait
    assert "1.750 of peer" in lines[-2]


def test_a_way_that_does_other_work_is_found():
    same = [contender("ours", 16), contender("peer", 16), contender("strong", 8, weights=1.0, scaling="strong")]
    check(same, solo_group("cpu"))
    with pytest.raises(AssertionError, match="ways differ by 1"):
        check([*same, contender("wrong", 16, weights=1.0)], solo_group("cpu"))
