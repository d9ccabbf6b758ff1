"""How rows are passed through a network where nobody says: how many at once, and how they lie in memory.

Both follow from the network and from shapes, never from a clock: the same request gives the same bytes on a busy
machine and an idle one. On a CPU, critics of images took least time a row at 16 to 64 rows of 32x32 or 64x64 and at 16
of 128x128, an EfficientNet-Lite0 of 224x224 at 4 or fewer: above that their activations fall out of the caches. Rows
that lie channels last took a fifth less time than others in a critic whose weights do not.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ganscale import ops
from ganscale.explain.subject import Subject, are_images

# what was traced, as long as its function is there
_frozen: WeakKeyDictionary[Callable, dict[tuple, ops.Frozen]] = WeakKeyDictionary()
VECTORS = 64  # rows of what is no image: latents, points
MOST = {"cpu": 32, "cuda": 256}
PIXELS = {"cpu": 1 << 18, "cuda": 1 << 24}


def rows_a_pass(subject: Subject, x: Tensor) -> int:
    """Return the rows of a pass over samples like ``x`` [N, ...]: a power of two, smaller the larger the images.

    The size that counts is the classifier's own where it enlarges what it is given.
    """
    if not are_images(x):
        return VECTORS
    kind = "cuda" if subject.device.type == "cuda" else "cpu"
    size = subject.classifier.size if subject.target.of_classifier and subject.classifier is not None else None
    height, width = size or x.shape[2:]
    fitting = max(1, PIXELS[kind] // (height * width))
    return min(MOST[kind], 1 << (fitting.bit_length() - 1))


@torch.no_grad()
def layout_of_rows(subject: Subject, x: Tensor) -> torch.memory_format:
    """Return channels_last where ``subject.fn`` takes rows like ``x`` so, and gives the same; else contiguous_format.

    A network that flattens with ``view`` does not take them. Called with the networks in eval mode.
    """
    if not are_images(x) or subject.device.type != "cpu":
        return torch.contiguous_format
    rows = x[:1].expand(2, *x.shape[1:])  # the first alone decides: fewer samples are passed no other way
    try:
        found = subject.fn(rows.contiguous(memory_format=torch.channels_last))
    except Exception:  # whatever a user's function raises: it is asked again in the ordinary way, and then it counts
        return torch.contiguous_format
    known = subject.fn(rows.contiguous())
    same = isinstance(found, Tensor) and found.shape == known.shape and torch.allclose(found, known, rtol=1e-4)
    return torch.channels_last if same else torch.contiguous_format


def frozen_function(subject: Subject, x: Tensor, count: int, layout: torch.memory_format) -> ops.Frozen | None:
    """Return ``subject.fn`` frozen for ``count`` rows like ``x`` that lie in ``layout``; None where it cannot be.

    It is traced on the first sample, so that all workers decide alike, and once: another explanation of the same
    callable takes the trace if its networks hold the same tensors and it still gives its values. Called with the
    networks in eval mode.
    """
    if not are_images(x) or subject.device.type != "cpu" or is_watched(subject):
        return None
    rows = x[:1].expand(count, *x.shape[1:]).contiguous(memory_format=layout)
    try:
        known = _frozen.setdefault(subject.fn, {})
    except TypeError:  # a callable that has no hash, or no weak reference
        known = {}
    tensors = (each for part in subject.modules for each in (*part.parameters(), *part.buffers()))
    kind = tuple(rows.shape), layout, rows.dtype, tuple(map(id, tensors))
    if kind not in known or not known[kind].stands_for(subject.fn, rows):
        known.pop(kind, None)
        if (frozen := ops.freeze(subject.fn, rows)) is not None:
            known[kind] = frozen
    return known.get(kind)


def is_watched(subject: Subject) -> bool:
    """Whether hooks of the networks want to be called at each pass, which a frozen function would not do."""
    return any(part._forward_hooks or part._forward_pre_hooks for each in subject.modules for part in each.modules())
