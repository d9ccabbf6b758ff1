"""The CUDA kernels on the CPU: many orders of threads, under sanitizers; and proof that these tests can fail, by
kernels that lack one barrier, one wait or one guard. See csrc/emu/simt.h.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from native import ROOT, build_sanitized, run, tool

CUDA = ROOT / "csrc" / "cuda"
FAMILIES = sorted(path.stem for path in (ROOT / "csrc" / "tests").glob("emulated_*.cpp"))

pytestmark = [
    pytest.mark.skipif(not (tool("cmake") and shutil.which("g++")), reason="needs cmake and g++"),
    pytest.mark.timeout(2400),  # the first build on a busy machine takes minutes
]


@pytest.fixture(scope="module")
def build():
    """The tests of every family, built with the address and undefined-behaviour sanitizers."""
    return build_sanitized(*(f"test_{family}" for family in FAMILIES))


def _selected(request, name):
    """Parameters ``name`` of the tests that this run asks for and does not skip."""
    items = [item for item in request.session.items if name in getattr(item, "fixturenames", ())]
    return [item.callspec.params[name] for item in items if not any(m.args[0] for m in item.iter_markers("skipif"))]


@pytest.fixture(scope="module")
def said(build, request):
    """What the tests of the selected families print; they run side by side."""
    chosen = _selected(request, "family")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(chosen, pool.map(_attempt, [build / f"test_{family}" for family in chosen]), strict=True))


def _attempt(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_are_right_in_many_orders_of_threads_and_clean_under_sanitizers(said, family):
    done = said[family]
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r": \d+ checks passed", done.stdout)


MISTAKES = {
    "barrier-in-a-branch": r"divergent barrier: 5 of 32 threads",
    "two-barriers": r"divergent barrier: another thread of the block waits at",
    "lane-outside-mask": r"mask 0000ffff by lane \d+, which the mask lacks",
    "lane-never-comes": r"a lane of the mask never came",
    "masks-differ": r"__syncwarp with mask \w+ while other lanes of the warp are in __syncwarp with mask",
    "shared-overrun": r"wrote outside its shared array tile of 256 bytes|use-after-poison|index 16 out of bounds",
    "copy-unwaited": r"ended without waiting for its asynchronous copies",
    "copy-misaligned": r"cp.async of 16 bytes, misaligned",
    "copy-to-global": r"cp.async to an address outside the block's shared memory",
    "ldmatrix-of-global": r"ldmatrix from outside the block's shared memory",
    "ldmatrix-misaligned": r"ldmatrix from a misaligned row",
    "ldmatrix-in-a-branch": r"a lane of the mask never came",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_kernel_that_breaks_the_rules_of_cuda_is_stopped_with_a_message(build, mistake):
    done = _attempt(build / "test_emulated_device", mistake)
    assert done.returncode != 0, done.stdout
    assert re.search(MISTAKES[mistake], done.stderr), done.stderr


# --- kernels that lack something ------------------------------------------------------------------------------------

REMOVED = {
    "barrier": r"__syncthreads\(\);",
    "wait": r"cp_async_wait<[^;]*>\(\);",
    "guard": r"if \([^;{}]* >= [^;{}]*\) (?:return|continue|break);",
}


@dataclass(frozen=True)
class Mutant:
    """A file of csrc/cuda without one statement: ``text`` is all of it."""

    file: str
    kind: str
    line: int
    text: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}-{self.kind}"

    @property
    def compiled(self) -> str:
        """The .cu file that brings the change into a program."""
        if self.file.endswith(".cu"):
            return self.file
        users = [path.name for path in sorted(CUDA.glob("*.cu")) if f'#include "{self.file}"' in path.read_text()]
        return "gp.cu" if "gp.cu" in users else users[0]

    @property
    def family(self) -> str:
        """The test that must notice."""
        family = self.compiled.removesuffix(".cu").replace("norm_sums", "norm_act")
        return "emulated_" + ("conv_transpose" if family.startswith("conv_transpose") else family)


# Lines that say so change no result: a guard that saves work, a barrier that orders what is not used.
WITHOUT_EFFECT = ("saves work", "the whole block", "kEnoughBlocks", "for the race checker")


def _mutants():
    for path in sorted((*CUDA.glob("*.cu"), *CUDA.glob("*.h"))):
        text = path.read_text(encoding="utf-8")
        for kind, pattern in REMOVED.items():
            for found in re.finditer(pattern, text):
                line = text.count("\n", 0, found.start()) + 1
                if any(reason in text.splitlines()[line - 1] for reason in WITHOUT_EFFECT):
                    continue
                yield Mutant(path.name, kind, line, f"{text[: found.start()]};{text[found.end() :]}")


def _outcome(mutant: Mutant, build: Path, folder: Path) -> subprocess.CompletedProcess:
    """Compile the mutant, put it before the right kernels when linking, and run its family's test."""
    shutil.copytree(CUDA, folder)
    (folder / mutant.file).write_text(mutant.text, encoding="utf-8")
    includes = [f"-I{folder}", *(f"-I{ROOT / 'csrc' / name}" for name in ("include", "cpu", "emu"))]
    flags = ["-std=c++17", "-O0", "-w", "-DGS_EMULATED=1", "-ffp-contract=off", "-fsanitize=address"]
    run("g++", *flags, *includes, "-x", "c++", "-c", str(folder / mutant.compiled), "-o", str(folder / "mutant.o"))
    test = build / f"CMakeFiles/test_{mutant.family}.dir/csrc/tests/{mutant.family}.cpp.o"
    objects = [str(folder / "mutant.o"), str(test), str(build / "libganscale_emulated.a")]
    run("g++", *objects, "-fsanitize=address,undefined", "-fopenmp", "-o", str(folder / "test"))
    try:
        return _attempt(folder / "test", timeout=300)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 1, "simt: the kernel does not end", "")


@pytest.fixture(scope="module")
def outcomes(build, request, tmp_path_factory):
    """What became of every selected mutant: they are compiled and run side by side."""
    chosen = _selected(request, "mutant")
    folder = tmp_path_factory.mktemp("mutants")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = {mutant: pool.submit(_outcome, mutant, build, folder / str(i)) for i, mutant in enumerate(chosen)}
    return {mutant: future.result() for mutant, future in waiting.items()}


def _cases():
    """Of each file the first of each kind; all of them take minutes."""
    known = set()
    for mutant in _mutants():
        again = (mutant.file, mutant.kind) in known and os.environ.get("GANSCALE_EXHAUSTIVE") != "1"
        known.add((mutant.file, mutant.kind))
        reason = "one statement of each kind a file suffices; GANSCALE_EXHAUSTIVE=1 removes each in turn"
        yield pytest.param(mutant, id=str(mutant), marks=pytest.mark.skipif(again, reason=reason))


@pytest.mark.parametrize("mutant", list(_cases()))
def test_a_kernel_without_it_is_noticed(outcomes, mutant):
    done = outcomes[mutant]
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert re.search(r"must be .*, got|\.cpp:\d+: |simt: |AddressSanitizer|runtime error", said), said
