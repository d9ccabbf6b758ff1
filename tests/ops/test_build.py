"""What the build must be: torch-free, with CUDA wherever nvcc is, safe on older CPUs, clean under sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from native import ROOT, build_sanitized, configure_command, run, tool

from ganscale import ops
from ganscale.ops import _extension

INFO = ops.build_info()

pytestmark = pytest.mark.skipif(not INFO["compiled"], reason="the compiled core is not built")


def test_the_module_links_no_torch_and_no_python_library():
    needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", _extension.core().__file__))
    assert needed
    assert not [name for name in needed if re.search(r"torch|c10|cuda|python", name)]


def test_the_module_imports_without_torch():
    code = "import sys, ganscale._C as c; c.build_info(); print('torch' in sys.modules)"
    assert run(sys.executable, "-c", code).strip() == "False"


def test_cuda_kernels_are_built_wherever_nvcc_is():
    if shutil.which("nvcc") and os.environ.get("GANSCALE_CUDA", "auto") != "0":
        assert INFO["cuda"]
        assert INFO["cuda_archs"]
    else:
        assert INFO["cuda_archs"] == []


def test_the_default_targets_are_ampere_and_hopper_and_code_for_what_comes_after():
    targets = "80-real;90a-real;90-virtual"
    for file, line in {
        "CMakeLists.txt": f'set(GANSCALE_CUDA_ARCHS "{targets}" CACHE',
        "setup.py": f'DEFAULT_CUDA_ARCHS = "{targets}"',
        "docs/operators.md": f"| `GANSCALE_CUDA_ARCHS` | default `{targets}` |",
    }.items():
        assert line in (ROOT / file).read_text(), file
    gpus = {(8, 0): True, (9, 0): True, (10, 0): True, (12, 0): True, (7, 5): False}
    assert {gpu: _extension.runs_on(gpu, targets.replace(";", ",")) for gpu in gpus} == gpus


@pytest.fixture(scope="module")
def tests_build():
    """The C++ tests, built with the address and undefined-behaviour sanitizers, CPU only."""
    if not tool("cmake"):
        pytest.skip("needs cmake")
    return build_sanitized("test_core")


@pytest.mark.timeout(900)  # the first build on a busy machine takes minutes
def test_the_cpp_tests_pass_under_address_and_undefined_behaviour_sanitizers(tests_build):
    for isa in INFO["cpu_features"]:
        said = run(str(tests_build / "test_core"), env={**os.environ, "GANSCALE_ISA": isa, "OMP_NUM_THREADS": "2"})
        assert re.search(rf"{isa}: \d+ checks passed", said)


def test_files_for_newer_cpus_export_nothing_an_older_path_could_pick_up(tests_build):
    objects = sorted(tests_build.glob("CMakeFiles/kernels_*.dir/**/*.o"))
    assert objects
    for file in objects:
        symbols = run("nm", "-C", str(file))
        offered = re.findall(r"^\S+ ([TWVu]) (.+)$", symbols, re.MULTILINE)
        offered = [(kind, name) for kind, name in offered if not re.search(r"asan|ubsan|sanitizer|odr|DW\.ref", name)]
        isa = (
            next(part for part in file.parts if part.startswith("kernels_"))
            .removeprefix("kernels_")
            .removesuffix(".dir")
        )
        names = [name.partition("(")[0] for _, name in offered]
        assert len(names) == 1
        assert re.fullmatch(rf"ganscale::cpu::\w*table_{isa}", names[0])


def test_asking_for_cuda_without_a_compiler_fails_the_build(tmp_path):
    if not tool("cmake"):
        pytest.skip("needs cmake")
    environment = {**os.environ, "CUDACXX": str(tmp_path / "no-nvcc")}
    command = configure_command(tmp_path / "build", "-DGANSCALE_CUDA=1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0
    assert "GANSCALE_CUDA must be 0 or auto" in done.stderr


BITS = """
import hashlib, torch
from ganscale import ops
from ganscale.ops import _register
torch.manual_seed(0)
x, bias = torch.randn(3, 17, 31, 9), torch.randn(17)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    t, b = x.to(dtype), bias.to(dtype)
    last = t.contiguous(memory_format=torch.channels_last)
    results = [_register.gp_interpolate(t, -last, b[:3].abs()), _register.channel_sum(t), _register.channel_sum(last)]
    results += _register.gp_penalty(t, 1.0, False)
    for act in ("linear", "relu", "leaky_relu", "tanh"):
        results += [_register.bias_act(t, b, act, 0.2), _register.bias_act(last, b, act, 0.2)]
        results += [_register.act_backward(t, results[-2], act, 0.2)]
    for result in results:
        digest.update(result.contiguous().view(torch.uint8).numpy().tobytes())
print(ops.build_info()["cpu_kernels"], digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits():
    said = {
        isa: run(sys.executable, "-c", BITS, env={**os.environ, "GANSCALE_ISA": isa}).split()
        for isa in INFO["cpu_features"]
    }
    assert {isa: name for isa, (name, _) in said.items()} == {isa: isa for isa in said}
    assert len({digest for _, digest in said.values()}) == 1


def test_an_unknown_instruction_set_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", "import ganscale.ops"],
        capture_output=True,
        text=True,
        env={**os.environ, "GANSCALE_ISA": "avx1024"},
        check=False,
    )
    assert done.returncode != 0
    assert "GANSCALE_ISA must be a known name, got avx1024" in done.stderr


def test_the_core_shares_torchs_pool_of_threads():
    """One OpenMP runtime in the process, or two pools would fight for the cores."""
    assert torch.get_num_threads() >= 1
    if sys.platform != "linux" or not INFO["openmp"]:
        pytest.skip("needs Linux and OpenMP")
    code = "import ganscale.ops; print(open('/proc/self/maps').read())"
    loaded = {line.split()[-1] for line in run(sys.executable, "-c", code).splitlines() if "libgomp" in line}
    assert len(loaded) == 1
