"""Signs of unstable training in what a run has logged: cycles, lost modes, gradients that vanish or explode.

Pure functions of numbers that are there already; they train and read nothing.

n values of a series, M modes, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ganscale.errors import UserError

LEAST_CYCLES = 4  # in the series; fewer are a trend as well
NEIGHBOURS = 8  # frequencies to either side that are the background of one
FALSE_ALARMS = 1e-3  # of series that have no cycle
MEDIAN_IS_UNSURE = 2.25  # peaks scatter more over a median of 17 values than over the truth; measured on 27,000 series
LEAST_VALUES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Oscillation:
    """A cycle in a series; build it with ``find_oscillation``."""

    period: float  # values a cycle
    growth: float  # of its amplitude, a factor a value: above 1 it runs away
    strength: float  # power over that of the neighbouring frequencies
    threshold: float  # what no more than one in a thousand series without a cycle exceeds


def find_oscillation(series: Sequence[float] | np.ndarray) -> Oscillation | None:
    """Return the strongest cycle of a series [n] of equally spaced values, such as losses a tick, or None.

    Differences are taken first, which turns a random walk into white noise, and their exponential trend is divided
    out, as a cycle that runs away is otherwise its last turn and no more. A peak of the tapered periodogram then has to
    stand out of its neighbourhood. Period and growth come from the demodulated cycle. Raises UserError below 64 values
    and where one is not finite.
    """
    x_n = np.asarray(series, dtype=np.float64)
    if x_n.ndim != 1 or len(x_n) < LEAST_VALUES or not np.isfinite(x_n).all():
        raise UserError(
            "series", f"be at least {LEAST_VALUES} finite values in a row", f"shape {x_n.shape}", "give a longer log"
        )
    step_n = np.diff(x_n)
    outgrowth = _outgrowth(step_n)
    step_n = step_n * np.exp(-outgrowth * np.arange(len(step_n)))
    step_n -= step_n.mean()
    power = np.abs(np.fft.rfft(step_n * np.hanning(len(step_n)))) ** 2
    cycles = np.arange(LEAST_CYCLES, len(power) - 1)
    strength = np.array([power[k] / _background(power, k) for k in cycles])
    threshold = MEDIAN_IS_UNSURE * math.log(len(cycles) / FALSE_ALARMS)
    best = int(np.argmax(strength))
    if not strength[best] > threshold:
        return None
    turn, growth = _demodulate(step_n, 2 * math.pi * cycles[best] / len(step_n))
    growth *= math.exp(outgrowth)
    return Oscillation(period=2 * math.pi / turn, growth=growth, strength=float(strength[best]), threshold=threshold)


def _outgrowth(step_n: np.ndarray) -> float:
    """Return the slope of the logarithm of the sizes: by how much a series grows a value, all in all."""
    there = np.flatnonzero(step_n)
    return float(np.polyfit(there, np.log(np.abs(step_n[there])), 1)[0]) if len(there) > LEAST_CYCLES else 0.0


def _background(power: np.ndarray, k: int) -> float:
    """Return the mean power around a frequency, by the median, which one peak does not move."""
    around = power[max(1, k - NEIGHBOURS) : k + NEIGHBOURS + 1]
    return max(float(np.median(around)) / math.log(2), np.finfo(float).tiny)


def _demodulate(x_n: np.ndarray, turn: float) -> tuple[float, float]:
    """Return radians and growth a value of the cycle of about ``turn`` radians: slopes of phase and log amplitude."""
    time_n = np.arange(len(x_n))
    width = max(2, round(2 * math.pi / turn))  # one cycle, over which what turns the other way cancels out
    slow = np.convolve(x_n * np.exp(-1j * turn * time_n), np.hanning(2 * width + 1), mode="valid")
    phase, size = np.unwrap(np.angle(slow)), np.log(np.maximum(np.abs(slow), np.finfo(float).tiny))
    drift, growth = (float(np.polyfit(time_n[: len(slow)], of, 1)[0]) for of in (phase, size))
    return float(turn + drift), math.exp(growth)


def mode_divergence(counts_M: Sequence[float] | np.ndarray) -> float:
    """Return KL(share of samples a mode || equal shares) in nats: 0 where all are hit alike, ln(M / m) for m of M.

    Raises UserError for counts that are negative, not finite, or all zero.
    """
    counts_M = np.asarray(counts_M, dtype=np.float64)
    if counts_M.ndim != 1 or not np.isfinite(counts_M).all() or (counts_M < 0).any() or not counts_M.sum() > 0:
        raise UserError("counts", "be numbers of samples a mode, of one at least", counts_M.tolist(), "count them anew")
    share = counts_M[counts_M > 0] / counts_M.sum()
    return float((share * np.log(share * len(counts_M))).sum())


def gradient_ratio(norms_L: Sequence[float] | np.ndarray) -> float:
    """Return by what factor gradients change a layer on their way back, from their norms, first layer first.

    The geometric mean: below 1 they vanish, above 1 they explode. Raises UserError for fewer than 2 layers or a norm
    that is not positive and finite.
    """
    norms_L = np.asarray(norms_L, dtype=np.float64)
    if norms_L.ndim != 1 or len(norms_L) < 2 or not (np.isfinite(norms_L) & (norms_L > 0)).all():
        raise UserError("norms", "be positive, of at least 2 layers", norms_L.tolist(), "leave frozen layers out")
    return float((norms_L[0] / norms_L[-1]) ** (1 / (len(norms_L) - 1)))
