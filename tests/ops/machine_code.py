"""What nvcc made of the CUDA kernels: read from the built module with the tools of the CUDA toolkit, no GPU needed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Kernel:
    """One kernel for one architecture: ``name`` without namespaces, ``arguments`` those of its template."""

    arch: str
    name: str
    arguments: tuple[str, ...]
    registers: int
    stack: int
    shared: int
    code: list[str] = field(default_factory=list)  # instructions with their modifiers, in order

    @property
    def element(self) -> str:
        """Type that the kernel loads and stores."""
        return self.arguments[0] if self.arguments else ""

    def count(self, pattern: str) -> int:
        """Instructions whose whole name matches."""
        return sum(re.fullmatch(pattern, each) is not None for each in self.code)

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(self.arguments)}> for {self.arch}"


def find_tool(package: str, name: str) -> str | None:
    """Path of a program: in the Python package that brings it, else on PATH."""
    try:
        for file in importlib.metadata.files(package) or ():
            if file.name == name and Path(file.locate()).is_file():
                return str(file.locate())
    except importlib.metadata.PackageNotFoundError:
        pass
    return shutil.which(name)


CUOBJDUMP = find_tool("nvidia-cuda-cuobjdump", "cuobjdump")
NVDISASM = find_tool("nvidia-cuda-nvdisasm", "nvdisasm")
CXXFILT = shutil.which("c++filt")


def _said(*command: str, **more) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, **more).stdout


def _split(name: str) -> tuple[str, tuple[str, ...]]:
    """Name and template arguments out of a demangled signature."""
    for noise in ("(anonymous namespace)::", "ganscale::cuda::", "(int)", "(bool)"):
        name = name.replace(noise, "")
    found = re.search(r"(\w+)(<|\()", name.removeprefix("void "))
    assert found, name
    if found[2] == "(":
        return found[1], ()
    arguments, depth = [""], 0
    for letter in name[name.index("<") + 1 :]:
        depth += (letter == "<") - (letter == ">")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            arguments.append("")
        else:
            arguments[-1] += letter
    return found[1], tuple(argument.strip() for argument in arguments)


def read_resources(module: str) -> dict[tuple[str, str], Kernel]:
    """Every kernel with what it uses, by architecture and mangled name."""
    kernels, arch, mangled = {}, "", ""
    for line in _said(CUOBJDUMP, "--dump-resource-usage", module).splitlines():
        if found := re.match(r"arch = (\S+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            mangled = found[1]
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            kernels[arch, mangled] = Kernel(arch, mangled, (), *map(int, found.groups()))
    names = _said(CXXFILT, input="\n".join(name for _, name in kernels)).splitlines()
    for kernel, name in zip(kernels.values(), names, strict=True):
        kernel.name, kernel.arguments = _split(name)
    return kernels


def listed(module: str, what: str) -> list[str]:
    """Architectures of the module's ``elf`` or ``ptx`` parts, one an original file and architecture."""
    return re.findall(r"\.(sm_\w+)\.(?:cubin|ptx)", _said(CUOBJDUMP, f"--list-{what}", module))


def read_code(module: str, folder: Path, kernels: dict[tuple[str, str], Kernel]) -> None:
    """Fill in the instructions of every kernel; ``folder`` receives the extracted parts."""
    _said(CUOBJDUMP, "--extract-elf", "all", module, cwd=folder)
    parts = sorted(folder.glob("*.cubin"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(lambda part: _said(NVDISASM, "--print-code", "--no-vliw", str(part)), parts))
    for part, text in zip(parts, texts, strict=True):
        arch = part.name.split(".")[-2]
        code: list[str] = []
        for line in text.splitlines():
            if found := re.match(r"\.text\.(\S+):", line):
                code = kernels[arch, found[1]].code
            elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)", line):
                code.append(found[1])
