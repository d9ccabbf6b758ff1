"""Which implementation a call uses: the compiled kernels, or the plain-torch twin."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from ganscale.errors import MissingPackageError, unknown
from ganscale.ops import _extension

IMPLS = ("auto", "reference", "fused")

# Elements from which "auto" takes the kernel: where it broke even on one AVX-512 core (bench/elementwise.py). Below,
# the call of an operator costs more than its kernel saves. A gradient penalty spares its useless zeros at any size.
PAYS_FROM = {
    "interpolate": 2**16,
    "sample_norm": 2**17,
    "linear": 2**18,
    "relu": 2**18,
    "leaky_relu": 2**18,
    "tanh": 2**20,
    "channel_sum": 2**20,
    "batch_norm_act": 2**15,
    "affine_act": 2**17,
    "channel_moments": 2**14,
    "conv_act": 2**10,
    "conv_transpose_few": 2**14,
    "conv_transpose_act": 2**14,
}

_default = "auto"
_here: ContextVar[str] = ContextVar("impl_here", default="auto")
_warned: set[str] = set()


def use_impl(name: str) -> str:
    """Set what ``impl="auto"`` means in this process ("auto", "reference" or "fused") and return what it was.

    "auto" leaves the decision to the environment variable GANSCALE_IMPL, and without it to the operator: the compiled
    kernel where it is built, fits the device and pays. "fused" never falls back, it raises. Raises ConfigError for
    another name.
    """
    global _default
    if name not in IMPLS:
        raise unknown("ops.impl", name, IMPLS)
    before, _default = _default, name
    return before


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Let ``impl="auto"`` mean ``name`` inside the block, in this thread alone: others may be training meanwhile.

    "auto" changes nothing. Raises ConfigError for another name than "auto", "reference" or "fused".
    """
    if name not in IMPLS:
        raise unknown("ops.impl", name, IMPLS)
    before = _here.set(_here.get() if name == "auto" else name)
    try:
        yield
    finally:
        _here.reset(before)


def plain_torch() -> contextlib.AbstractContextManager[None]:
    """Let ``impl="auto"`` mean plain torch inside the block, in this thread alone."""
    return using("reference")


def resolve(impl: str) -> str:
    """Return the implementation that is asked for: by the call, else by ``using``, ``use_impl`` or GANSCALE_IMPL."""
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    here = "auto" if torch.compiler.is_compiling() else _here.get()  # which torch.compile could not follow
    for name in (impl, here, _default):
        if name != "auto":
            return name
    name = os.environ.get("GANSCALE_IMPL", "") or "auto"
    if name not in IMPLS:
        raise unknown("GANSCALE_IMPL", name, IMPLS)
    return name


def obstacle(device: torch.device) -> str:
    """Say why the compiled kernels cannot run on ``device``; the empty string where they can."""
    if _extension.problem():
        return _extension.problem()
    if device.type in ("cpu", "meta"):
        return ""
    facts = _extension.facts()
    if device.type != "cuda":
        return f"the compiled core has no kernels for device {device.type}"
    if not facts["cuda"]:
        return "the compiled core was built without CUDA"
    if not facts["cuda_devices"]:
        return f"the compiled core sees no GPU ({facts['cuda_problem']})"
    capability = torch.cuda.get_device_capability(device)
    if not _extension.runs_on(capability, str(facts["cuda_archs"])):
        return f"the compiled core was built for {facts['cuda_archs']}, the GPU is {capability[0]}.{capability[1]}"
    return ""


def is_transformed() -> bool:
    """Tell whether a transform of torch.func is active, which only plain torch can follow.

    Torch's operators from outside have no derivative there: reverse mode is refused, forward mode gives zeros.
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def use_fused(impl: str, x: Tensor, operator: str) -> bool:
    """Decide for one call on ``x`` of an operator named in ``PAYS_FROM``.

    Falling back on "auto" warns once a process and reason: the results are the same, the time is not. Small tensors
    take the twin without a word, because it is faster there, and so does whatever torch.func transforms, also where
    "fused" is asked for. Raises MissingPackageError where "fused" is asked for and cannot be had.
    """
    name = resolve(impl)
    if name == "reference" or is_transformed() or (name == "auto" and x.numel() < PAYS_FROM[operator]):
        return False
    why = obstacle(x.device)
    if not why:
        return True
    if name == "fused":
        raise MissingPackageError("impl='fused'", "have kernels for its input", why, _extension.REBUILD)
    if why not in _warned:
        _warned.add(why)
        warnings.warn(
            f"ganscale.ops falls back to plain torch: {why}; results are the same, it is slower", stacklevel=3
        )
    return False
