"""The only importer of the compiled module ``ganscale._C``, and what is known about it."""

from __future__ import annotations

import functools
import os
from types import ModuleType

from ganscale.errors import MissingPackageError, unknown

ISAS = ("base", "avx2", "avx512")
REBUILD = "pip install the package again with a C++17 compiler on PATH, or use impl='reference'"


def _load() -> tuple[ModuleType | None, str]:
    wanted = os.environ.get("GANSCALE_ISA", "")
    if wanted and wanted not in ISAS:
        raise unknown("GANSCALE_ISA", wanted, ISAS)
    try:
        from ganscale import _C
    except ImportError as error:
        return None, f"the compiled core cannot be imported ({error})"
    return _C, ""


_module, _problem = _load()


def core() -> ModuleType:
    """Return ``ganscale._C``; raises MissingPackageError where it was not built."""
    if _module is None:
        raise MissingPackageError("ganscale._C", "be importable for impl='fused'", _problem, REBUILD)
    return _module


def problem() -> str:
    """Say why the compiled core cannot be used; the empty string where it can."""
    return _problem


@functools.cache
def facts() -> dict[str, object]:
    """Return what the core says about its build and this machine; empty without a core."""
    return {} if _module is None else dict(_module.build_info())


def runs_on(capability: tuple[int, int], archs: str) -> bool:
    """Tell whether code for ``archs`` ("80-real,90a-real,90-virtual") runs on a GPU of this compute capability.

    Machine code ("real") runs within its major version, from its minor version on; code with the suffix "a" on that
    very chip alone; "virtual" code is translated by the driver for everything newer.
    """
    number = capability[0] * 10 + capability[1]
    for arch in filter(None, archs.split(",")):
        name, _, kind = arch.partition("-")
        specific, digits = not name[-1].isdigit(), int(name.rstrip("af"))
        if specific:
            fits = number == digits
        else:
            same_major = number // 10 == digits // 10
            fits = number >= digits and (same_major or kind != "real")
        if fits:
            return True
    return False
