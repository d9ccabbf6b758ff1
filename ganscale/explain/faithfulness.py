"""The scoring round of attributions: curves, infidelity and sensitivity of a map, each beside its controls.

Legend: N samples, M players, R random orders, P curve points, H height, W width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ganscale.explain import scores
from ganscale.explain.base import SCORING, Meter
from ganscale.explain.plan import Chunk, Request
from ganscale.explain.types import Score

if TYPE_CHECKING:
    from ganscale.explain.attribution import AttributionExplainer, Maps

INFIDELITY_MASKS = 64


def measure(explainer: AttributionExplainer, chunk: Chunk, meter: Meter) -> dict[str, Any]:
    """Return the curves and the infidelity of one sample, with their controls.

    Inserting in an order is deleting in its reverse, read backwards: one set of random orders is the control of both.
    """
    rng, players = chunk.rng(explainer.request.seed), explainer.players
    weights_M, effects_M, other_M = (chunk.work[name] for name in ("weights", "effects", "other"))
    best_first = np.argsort(-weights_M, kind="stable")
    random_orders = [rng.permutation(players) for _ in range(scores.RANDOM_ORDERS)]
    counts_P = scores.removal_counts(players, explainer.options.curve_points)
    others = [] if other_M is None else [np.argsort(-other_M, kind="stable")]
    orders = [best_first, best_first[::-1], *random_orders, *others]
    inner = [scores.deletion_masks(order, counts_P[1:-1]) for order in orders]
    removed = rng.random((INFIDELITY_MASKS, players)) < 0.5
    ends = np.stack([np.ones(players, dtype=bool), np.zeros(players, dtype=bool)])
    # what may be missing comes last: the place of a row in its pass decides on its last bits
    rows = np.concatenate([ends, ~removed, *inner])
    f_n = explainer.evaluate(chunk.explanation, rows, meter)
    full, empty, f_n = f_n[0], f_n[1], f_n[2:]
    middle = f_n[len(removed) :].reshape(len(orders), len(counts_P) - 2)
    curves = np.pad(middle, ((0, 0), (1, 1)), constant_values=((0, 0), (full, empty)))
    drop_n = full - f_n[: len(removed)]
    shuffled = [effects_M[rng.permutation(players)] for _ in range(scores.RANDOM_ORDERS)]
    return {
        "deletion": curves[0],
        "insertion": curves[1][::-1].copy(),
        "random": curves[2 : 2 + len(random_orders)],
        "other": curves[-1] if others else None,
        "infidelity": scores.infidelity(effects_M, removed, drop_n),
        "infidelity_random": np.array([scores.infidelity(other, removed, drop_n) for other in shuffled]),
    }


def scores_of(
    maps: Maps, moved: list[Maps], found: list[dict[str, Any]], *, request: Request, points: int
) -> tuple[dict[str, Tensor], dict[str, Score], list[str]]:
    """Return the curves as values, the scores, and warnings, of what ``measure`` found for each sample."""
    players = maps.weights_NM.shape[1]
    counts_P = scores.removal_counts(players, points)
    deletion, insertion, random = (np.stack([one[key] for one in found]) for key in ("deletion", "insertion", "random"))
    area_N, random_area_NR = scores.area(deletion, counts_P), scores.area(random, counts_P)
    rng = np.random.default_rng(np.random.SeedSequence(request.seed, spawn_key=(0, SCORING + 1)))
    random_gini_R = scores.gini(rng.standard_normal((scores.RANDOM_ORDERS, players)))
    infidelity_N = np.array([one["infidelity"] for one in found])
    random_infidelity_NR = np.stack([one["infidelity_random"] for one in found])
    measured = {
        "deletion_auc": scores.against_random(area_N, random_area_NR, better="lower"),
        "insertion_auc": scores.against_random(scores.area(insertion, counts_P), random_area_NR, better="higher"),
        "infidelity": replace(scores.against_random(infidelity_N, random_infidelity_NR, better="lower"), constant=1.0),
        "completeness_gap": scores.completeness(maps.predicted_NM, maps.fx_N, maps.baseline_N),
        "gini": scores.against_random(
            scores.gini(maps.weights_NM), np.tile(random_gini_R, (len(found), 1)), better="higher"
        ),
    }
    if moved and (score := _max_sensitivity(maps, moved, rng)) is not None:
        measured["max_sensitivity"] = score
    other_N = np.array([np.nan if one["other"] is None else scores.area(one["other"], counts_P) for one in found])
    if np.isfinite(other_N).any():
        measured["deletion_auc_v_shuffled_network"] = scores.against_control(area_N, other_N, better="lower")
    if "mask" in request.inputs:
        measured["pointing_game"] = pointing_game(maps.attribution, request.inputs["mask"])
    curves = {"deletion_curve": deletion, "insertion_curve": insertion, "random_curves": random}
    values = {**curves, "fx": maps.fx_N, "f_baseline": maps.baseline_N, "curve_share": counts_P / counts_P[-1]}
    as_tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in values.items()}
    constant = not np.ptp(np.concatenate([deletion[:, None], insertion[:, None], random], axis=1), axis=(1, 2)).any()
    return as_tensors, measured, _misfits(infidelity_N, maps.scores, constant=constant)


def pointing_game(maps: Tensor, mask: Tensor) -> Score:
    """Score how often the largest value of a map [N, C, H, W] lies in its sample's mask bool [N, H, W].

    Zhang et al. 2016 (arXiv:1608.00507, section 4.1). The control is the mean share of the image that the mask covers:
    what pointing at random reaches. The interval is that of a random pointer.
    """
    at_N = maps.sum(dim=1).flatten(1).argmax(dim=1)
    inside = mask.flatten(1).bool()
    hit_N = inside.gather(1, at_N[:, None])[:, 0].double()
    share_N = inside.double().mean(dim=1)
    half = scores.Z95 * float((share_N * (1 - share_N)).sum().sqrt()) / len(maps)
    value = float(hit_N.mean())
    return Score(
        value=value, low=value - half, high=value + half, control=float(share_N.mean()), n=len(maps), better="higher"
    )


def _max_sensitivity(maps: Maps, moved: list[Maps], rng: np.random.Generator) -> Score | None:
    """Score how far the map moves with its input, in shares of its norm (Yeh et al. 2019, arXiv:1901.09392, def. 3.1).

    The control is the same map with its values shuffled over the picture, which a small step should not resemble.
    Of the samples of which all moved maps were made; None where there are none.
    """
    made = np.all([one.made_N for one in moved], axis=0)
    if not made.any():
        return None
    own, *others = (one.attribution.double().flatten(1).numpy()[made] for one in (maps, *moved))
    size_N, most_N = np.linalg.norm(own, axis=1), np.max([np.linalg.norm(one, axis=1) for one in others], axis=0)
    norm_N = np.maximum(np.where(size_N > 0, size_N, most_N), np.finfo(float).tiny)  # an empty map that fills: 1
    away = [np.linalg.norm(one - own, axis=1) for one in others]
    orders = [rng.permutation(own.shape[1]) for _ in range(scores.RANDOM_ORDERS)]
    random = [np.linalg.norm(own[:, order] - own, axis=1) for order in orders]
    return scores.against_random(
        np.max(away, axis=0) / norm_N, np.stack(random, axis=1) / norm_N[:, None], better="lower"
    )


def _misfits(infidelity_N: np.ndarray, found: dict[str, Score], *, constant: bool) -> list[str]:
    """Say in words where the map ranks the parts but its sizes predict nothing: both controls below are absolute.

    ``constant``: f did not change whatever was taken away.
    """
    if constant:
        return ["the output is the same whatever is taken away: there is nothing to explain"]
    words = []
    if infidelity_N.mean() >= 1:
        words.append("infidelity is 1 or more: the map's sizes predict changes of the output no better than zeros")
    if "r_squared" in found and found["r_squared"].value < 0:
        words.append("R² is below 0: the linear surrogate fits worse than a constant; read the order, not the sizes")
    return words
