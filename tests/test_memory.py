"""What malloc is told, seen by what a process holds after it has freed a large block."""

import json
import os
import subprocess
import sys

import pytest

MIB = 2**20
BLOCK_MIB = 200
CODE = f"""
import json, sys
import numpy as np
from ganscale.memory import keep_freed_memory

def held_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / {MIB}

kept = keep_freed_memory() if sys.argv[1] == "ours" else 0
before = held_mib()
block = np.ones({BLOCK_MIB} * {MIB // 8})
del block
print(json.dumps({{"kept": kept, "held_mib": held_mib() - before}}))
"""
SET_BY_USER = {"MALLOC_TRIM_THRESHOLD_": "131072"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of glibc")


def _run(who: str, **environment: str) -> dict:
    clean = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", CODE, who], env=clean | environment, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_a_process_of_ours_keeps_a_block_that_another_gives_back():
    ours, plain = _run("ours"), _run("plain")
    assert ours["kept"] >= 32 * MIB
    assert ours["held_mib"] > BLOCK_MIB / 2 > plain["held_mib"]


def test_what_the_user_told_malloc_stands():
    found = _run("ours", **SET_BY_USER)
    assert found["kept"] == 0
    assert found["held_mib"] < BLOCK_MIB / 2
