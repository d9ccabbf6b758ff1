"""Which implementation runs: the call, then the process, then the environment; and what happens without the core."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from ganscale import errors, ops
from ganscale.ops import _choice, _extension

WITHOUT_CORE = "import sys; sys.modules['ganscale._C'] = None\n"


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.delenv("GANSCALE_IMPL", raising=False)
    before = ops.use_impl("auto")
    yield
    ops.use_impl(before)


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_the_call_beats_the_process_beats_the_environment(monkeypatch):
    assert _choice.resolve("auto") == "auto"
    monkeypatch.setenv("GANSCALE_IMPL", "reference")
    assert _choice.resolve("auto") == "reference"
    assert ops.use_impl("fused") == "auto"
    assert _choice.resolve("auto") == "fused"
    assert _choice.resolve("reference") == "reference"
    assert ops.use_impl("auto") == "fused"
    assert _choice.resolve("auto") == "reference"


def test_a_block_beats_the_process_and_inner_blocks_their_outer_ones_but_auto_changes_nothing():
    ops.use_impl("fused")
    with ops.using("reference"):
        assert _choice.resolve("auto") == "reference"
        assert _choice.resolve("fused") == "fused"  # the call says more
        with ops.using("auto"):
            assert _choice.resolve("auto") == "reference"
        with ops.using("fused"):
            assert _choice.resolve("auto") == "fused"
        assert _choice.resolve("auto") == "reference"
    assert _choice.resolve("auto") == "fused"
    with pytest.raises(errors.ConfigError, match="did you mean fused"), ops.using("fuse"):
        pass


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("GANSCALE_IMPL", "fuzed")
    with pytest.raises(errors.ConfigError, match="GANSCALE_IMPL must be a known name"):
        ops.sample_norm(torch.zeros(1, 1))


@pytest.mark.skipif(not ops.build_info()["compiled"], reason="the compiled core is not built")
def test_auto_takes_the_twin_for_small_tensors_and_the_kernel_for_large_ones():
    small, large = torch.zeros(1, _choice.PAYS_FROM["relu"] - 1), torch.zeros(1, _choice.PAYS_FROM["relu"])
    assert not _choice.use_fused("auto", small, "relu")
    assert _choice.use_fused("auto", large, "relu")
    assert _choice.use_fused("fused", small, "relu")
    assert not _choice.use_fused("reference", large, "relu")


def test_without_the_core_everything_works_and_one_warning_names_the_reason():
    done = _python(
        WITHOUT_CORE
        + """
import warnings, torch
from ganscale import ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        penalty = ops.gradient_penalty(lambda x: x.square().sum(1) / 2, torch.ones(2, 2**17), center=0.0)
        ops.bias_act(torch.ones(2, 2**20), torch.zeros(2**20), activation="tanh")
print(penalty.tolist(), [str(w.message) for w in caught], ops.build_info(), ops.describe(), sep="|")
"""
    )
    assert done.returncode == 0, done.stderr
    penalty, caught, info, line = done.stdout.strip().split("|")
    assert penalty == "[131072.0, 131072.0]"
    assert caught.count("falls back to plain torch: the compiled core cannot be imported") == 1
    assert "'compiled': False" in info
    assert line.startswith("plain torch (the compiled core cannot be imported")


@pytest.mark.parametrize("how", ["environment", "process", "call"])
def test_without_the_core_fused_raises_instead_of_falling_back(how):
    code = WITHOUT_CORE + "import torch\nfrom ganscale import errors, ops\n"
    code += "ops.use_impl('fused')\n" if how == "process" else ""
    code += "try:\n    ops.sample_norm(torch.ones(2, 3), impl='%s')\n" % ("fused" if how == "call" else "auto")
    code += "except errors.MissingPackageError as error:\n    print(error)\n"
    done = _python(code, **({"GANSCALE_IMPL": "fused"} if how == "environment" else {}))
    assert done.returncode == 0, done.stderr
    assert "impl='fused' must have kernels for its input, got the compiled core cannot be imported" in done.stdout


def test_a_device_without_kernels_is_named():
    assert _choice.obstacle(torch.device("xpu")) != ""
    if not torch.cuda.is_available():
        assert _choice.obstacle(torch.device("cuda")) != ""


def test_which_gpus_a_build_runs_on():
    built = "80-real,90a-real,90-virtual"
    runs = {(7, 5): False, (8, 0): True, (8, 6): True, (8, 9): True, (9, 0): True, (10, 0): True, (12, 0): True}
    assert {capability: _extension.runs_on(capability, built) for capability in runs} == runs
    assert not _extension.runs_on((10, 0), "80-real,90a-real")  # code for one chip alone, and no later translation
    assert not _extension.runs_on((9, 0), "")


def test_build_info_says_what_the_contract_promises():
    info = ops.build_info()
    assert isinstance(info["cuda"], bool)
    if info["compiled"]:
        assert isinstance(info["cuda_archs"], list)
        assert info["cpu_kernels"] in info["cpu_features"]
    assert isinstance(ops.describe(), str)
    assert "\n" not in ops.describe()


def test_plain_torch_is_meant_in_its_own_thread_alone():
    began, asked = threading.Barrier(2), threading.Barrier(2)
    found = []

    def elsewhere():
        began.wait(60)
        found.append(_choice.resolve("auto"))
        asked.wait(60)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with ops.plain_torch():
        began.wait(60)
        asked.wait(60)
        assert _choice.resolve("auto") == "reference"
        assert _choice.resolve("fused") == "fused"
    thread.join()
    assert found == ["auto"]
    assert _choice.resolve("auto") == "auto"
