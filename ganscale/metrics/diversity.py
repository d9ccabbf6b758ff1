"""How varied are the samples: class histograms and the distance between neighbours.

N samples, K classes, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganscale.errors import UserError
from ganscale.metrics.neighbours import own_nearest_distances


def class_histogram(logits: Tensor) -> Tensor:
    """Count ``[K]`` (int64) of samples whose largest logit of ``[N, K]`` is each class.

    A weak classifier invents classes: state its held-out accuracy beside whatever is concluded from this.
    Raises ``UserError`` for other shapes or non-finite logits.
    """
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] < 2:
        raise UserError(
            "logits", "be [N, K] with at least 2 classes", str(list(logits.shape)), "pass a classifier's output"
        )
    if not logits.isfinite().all():
        raise UserError("logits", "be finite", "NaN or infinity", "look at the images that gave them")
    return torch.bincount(logits.detach().argmax(1).cpu(), minlength=logits.shape[1])


def histogram_kl(counts: Tensor, reference: Tensor | None = None) -> float:
    """Kullback-Leibler divergence in nat of the histogram ``counts`` ``[K]`` from ``reference`` (uniform where None).

    0 for equal proportions, ln(K / k) for k equal classes of K; infinite where a class is hit that the reference
    lacks. Even a perfect sampler of n samples scores about (K - 1) / (2 n). Raises ``UserError`` for empty, negative
    or unequal histograms.
    """
    reference = torch.ones_like(counts) if reference is None else reference
    if counts.shape != reference.shape or counts.ndim != 1:
        got = f"{list(counts.shape)} and {list(reference.shape)}"
        raise UserError("histograms", "be [K] of one length", got, "count both over the same classes")
    for histogram in (counts, reference):
        if (histogram < 0).any() or not histogram.sum() > 0:
            raise UserError(
                "a histogram", "hold counts with a positive sum", str(histogram.tolist()), "count samples first"
            )
    p = counts.double() / counts.sum()
    q = reference.double() / reference.sum()
    hit = p > 0
    return max(float((p[hit] * (p[hit] / q[hit]).log()).sum()), 0.0)


def neighbour_distance_ratio(fake: Tensor, real: Tensor) -> float:
    """Median distance to the next sample among fakes ``[M, D]`` over that among reals ``[N, D]``.

    Around 1 for equal variety, towards 0 when fakes repeat each other. It shrinks with the number of samples, so both
    sets must be of one size. Raises ``UserError`` for unequal sizes, fewer than two samples, or reals that are copies.
    """
    if len(fake) != len(real):
        raise UserError(
            "fake and real", "hold equally many samples", f"{len(fake)} and {len(real)}", "measure the same number"
        )
    real_median = float(own_nearest_distances(real).median())
    if real_median == 0:
        raise UserError("real samples", "differ from each other", "copies for the most part", "remove duplicates")
    return float(own_nearest_distances(fake).median()) / real_median
