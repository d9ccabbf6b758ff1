"""How good a ranking of a gallery is by labels: recall at k and average precision, beside random rankings.

Legend: N queries, T places of a ranking, M images of the gallery, R random rankings.
"""

from __future__ import annotations

import numpy as np

DEPTH = 100  # places of a ranking that are looked at


def recall_at(right_NT: np.ndarray, k: int) -> np.ndarray:
    """Return for each ranking whether one of its first k places is right, float64 [...].

    The recall at k of metric learning (Jegou et al. 2011, doi:10.1109/TPAMI.2010.57).
    """
    return right_NT[..., :k].any(axis=-1).astype(float)


def average_precision(right_NT: np.ndarray, relevant_N: np.ndarray) -> np.ndarray:
    """Return for each ranking the mean precision at its right places, float64 [...]; NaN where nothing is relevant.

    Of the T places that are known: the sum is divided by the number of relevant images or T, whichever is less, so a
    ranking that could be no better has 1. With T = M it is the common average precision.
    """
    places = right_NT.shape[-1]
    precision = np.cumsum(right_NT, axis=-1) / np.arange(1, places + 1)
    most = np.minimum(relevant_N, places)
    total = (precision * right_NT).sum(axis=-1)
    return np.divide(total, most, out=np.full(total.shape, np.nan), where=most > 0)


def random_rankings(relevant: int, gallery: int, places: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return which places are right in ``count`` random rankings of a gallery, bool [R, T]."""
    right = np.tile(np.arange(gallery) < relevant, (count, 1))
    return rng.permuted(right, axis=1)[:, :places]


def without(place_T: np.ndarray, gone: np.ndarray, places: int) -> np.ndarray:
    """Return the first ``places`` of a ranking that are not among ``gone``; fewer where no more are known."""
    return place_T[~np.isin(place_T, gone)][:places]
