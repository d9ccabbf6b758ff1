"""How far an attribution can be trusted: curves, infidelity, sparsity, each beside what chance reaches.

Pure functions of numbers; the network is evaluated by the caller.
Legend: N samples, M players, R random controls, P curve points, n rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from ganscale.explain.types import Better, Score

RANDOM_ORDERS = 20
Z95 = 1.96


def removal_counts(players: int, points: int) -> np.ndarray:
    """Return how many players are gone at each point of a curve: 0 ... M, symmetric, about ``points`` numbers."""
    lower = np.floor(np.linspace(0, players / 2, points // 2 + 1) + 1e-9).astype(int)
    return np.unique(np.concatenate([lower, players - lower])) if points < players else np.arange(players + 1)


def deletion_masks(order_M: np.ndarray, counts_P: np.ndarray) -> np.ndarray:
    """Return bool [P, M]: which players are still there after the first counts[p] of ``order`` were removed."""
    rank_M = np.empty(len(order_M), dtype=int)
    rank_M[order_M] = np.arange(len(order_M))
    return rank_M[None, :] >= counts_P[:, None]


def area(curve_P: np.ndarray, counts_P: np.ndarray) -> np.ndarray:
    """Return the trapezoid area under curves [..., P] over the removed share in [0, 1]."""
    return np.trapezoid(curve_P, counts_P / counts_P[-1], axis=-1)


def infidelity(weights_M: np.ndarray, removed_nM: np.ndarray, drop_n: np.ndarray) -> float:
    """Return E[(predicted - measured drop)^2] / E[measured drop^2] over random removals.

    The infidelity of Yeh et al. 2019 (arXiv:1901.09392, definition 2.1, square removals), divided by what an empty map
    scores: 0 for an exact additive account, 1 for an empty one; NaN where removals change nothing.
    """
    power = float(np.mean(drop_n**2))
    if power == 0:
        return float("nan")
    return float(np.mean((removed_nM.astype(float) @ weights_M - drop_n) ** 2)) / power


def gini(weights_NM: np.ndarray) -> np.ndarray:
    """Return the Gini coefficient of |weights| per sample [N]: 0 evenly spread, near 1 all in one player; 0 for an
    empty map.

    Chalasani et al. 2020 (arXiv:1810.06583, section 5).
    """
    sorted_NM = np.sort(np.abs(weights_NM), axis=1)
    players = sorted_NM.shape[1]
    total_N = sorted_NM.sum(axis=1)
    place_M = (2 * np.arange(1, players + 1) - players - 1) / players
    return np.divide(sorted_NM @ place_M, total_N, out=np.zeros(len(sorted_NM)), where=total_N > 0)


def against_random(value_N: np.ndarray, random_NR: np.ndarray, *, better: Better) -> Score:
    """Score the mean of ``value_N`` against R random controls of the same samples.

    The interval is 95 % of what a random control of its own would have, by Student's distribution: the spread over R
    within each sample, pooled over N, times 1 + 1/R because the control's mean is an estimate too. One sample is thus
    enough, and few controls cost a wider interval.
    """
    count, controls = random_NR.shape
    spread = np.sqrt(random_NR.var(axis=1, ddof=1).sum() * (1 + 1 / controls)) / count
    half = float(stdtrit(count * (controls - 1), 0.975) * spread)
    value = float(value_N.mean())
    return Score(
        value=value,
        low=value - half,
        high=value + half,
        control=float(random_NR.mean()),
        n=count,
        better=better,
    )


def against_control(value_N: np.ndarray, control_N: np.ndarray, *, better: Better) -> Score:
    """Score the mean of ``value_N`` against a control of the same samples that is not random.

    The interval is 95 % of the mean paired difference by Student's distribution (of many pairs 1.96 standard errors);
    there is none below two pairs. Pairs with a number that is not finite are left out; without any pair value and
    control are NaN.
    """
    kept = np.isfinite(value_N) & np.isfinite(control_N)
    value_N, control_N = value_N[kept], control_N[kept]
    if not len(value_N):
        return Score(value=float("nan"), control=float("nan"), n=0, better=better)
    value, control = float(value_N.mean()), float(control_N.mean())
    if len(value_N) < 2:
        return Score(value=value, control=control, n=1, better=better)
    quantile = float(stdtrit(len(value_N) - 1, 0.975))
    half = quantile * float((value_N - control_N).std(ddof=1)) / float(np.sqrt(len(value_N)))
    return Score(
        value=value,
        low=value - half,
        high=value + half,
        control=control,
        n=len(value_N),
        better=better,
        margin_of="difference",
    )


def against_shuffled(effect_LN: np.ndarray, rng: np.random.Generator) -> tuple[Score, np.ndarray]:
    """Score how far the means of L groups differ (standard deviation), and return the controls [R] too.

    A control shuffles the groups of each of the N samples, as if none were different from another.
    """
    spread = float(effect_LN.mean(axis=1).std())
    shuffled = np.array([rng.permuted(effect_LN, axis=0).mean(axis=1).std() for _ in range(RANDOM_ORDERS)])
    score = against_random(np.array([spread]), shuffled[None], better="higher")
    return replace(score, n=effect_LN.shape[1]), shuffled


def completeness(weights_NM: np.ndarray, fx_N: np.ndarray, baseline_N: np.ndarray) -> Score:
    """Score the worst |sum of weights - (f(x) - f(baseline))| over the larger of |f(x)|, |f(baseline)| in the batch.

    Dividing by f(x) - f(baseline) would mean nothing where that is tiny. The control is an empty map.
    """
    change_N = fx_N - baseline_N
    scale = max(float(np.abs(fx_N).max()), float(np.abs(baseline_N).max()), np.finfo(float).tiny)
    gap = float(np.abs(weights_NM.sum(axis=1) - change_N).max()) / scale
    return Score(value=gap, control=float(np.abs(change_N).max()) / scale, n=len(fx_N), better="zero")
