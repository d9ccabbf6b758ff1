"""How well each number of a code stands for one factor: MIG, SAP, DCI, linear probes. Pure functions of arrays.

Legend: N samples, D numbers of a code, F factors.
"""

from __future__ import annotations

import numpy as np

from ganscale.errors import MissingPackageError
from ganscale.explain.errors import ExplainInputError

BINS = 20  # as Locatello et al. 2019 (arXiv:1811.12359) discretise codes
DISCRETE = 10  # a factor with at most so many values is a class
TREES, DEPTH = 30, 3


def mutual_information(codes_ND: np.ndarray, factor_N: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mutual information of each code with the factor [D] and the factor's entropy, in nats.

    Codes, and a factor of many values, are cut into ``BINS`` bins of equal width.
    """
    factor = _discrete(factor_N)
    entropy = _entropy(np.bincount(factor))
    found = np.zeros(codes_ND.shape[1])
    for place, code_N in enumerate(codes_ND.T):
        code = _binned(code_N)
        joint = np.zeros((code.max() + 1, factor.max() + 1))
        np.add.at(joint, (code, factor), 1)
        found[place] = _entropy(joint.sum(axis=1)) + entropy - _entropy(joint.ravel())
    return found, entropy


def information_gap(information_DF: np.ndarray, entropy_F: np.ndarray) -> float:
    """Return the mutual information gap (Chen et al. 2018, arXiv:1802.04942, eq. 6): best minus second best code."""
    return _gap(information_DF / np.maximum(entropy_F, 1e-12))


def squared_correlation(codes_ND: np.ndarray, factor_N: np.ndarray) -> np.ndarray:
    """Return the squared correlation of each code with the factor [D]; 0 where a code does not vary."""
    codes = codes_ND - codes_ND.mean(axis=0)
    factor = factor_N - factor_N.mean()
    power = (codes**2).sum(axis=0) * (factor**2).sum()
    return np.divide((codes.T @ factor) ** 2, power, out=np.zeros(len(power)), where=power > 1e-300)


def separated(correlation_DF: np.ndarray) -> float:
    """Return SAP (Kumar et al. 2018, arXiv:1711.00848, section 3): best minus second best code, by squared
    correlation.
    """
    return _gap(correlation_DF)


def importances(codes_ND: np.ndarray, factor_N: np.ndarray, *, seed: int) -> tuple[np.ndarray, float]:
    """Return how much each code serves boosted trees that predict the factor [D], sum 1, and their held-out score.

    Half of the samples are learned from. The score is the accuracy for a factor of at most ``DISCRETE`` values, else
    R^2. Raises MissingPackageError without scikit-learn.
    """
    try:
        from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
    except ImportError:
        remedy = "pip install 'ganscale[explain]'"
        raise MissingPackageError("disentanglement", "have scikit-learn", "no such package", remedy) from None
    classes = len(np.unique(factor_N)) <= DISCRETE
    kind = GradientBoostingClassifier if classes else GradientBoostingRegressor
    trees = kind(n_estimators=TREES, max_depth=DEPTH, subsample=0.5, random_state=seed)
    half = len(codes_ND) // 2
    target = _discrete(factor_N) if classes else factor_N
    trees.fit(codes_ND[:half], target[:half])
    return trees.feature_importances_, float(trees.score(codes_ND[half:], target[half:]))


def disentanglement(importance_DF: np.ndarray) -> float:
    """Return DCI's disentanglement (Eastwood and Williams 2018, eq. 1): does a code serve one factor alone?"""
    weight_D = importance_DF.sum(axis=1)
    return _one_minus_entropy(importance_DF, weight_D)


def completeness(importance_DF: np.ndarray) -> float:
    """Return DCI's completeness (Eastwood and Williams 2018, eq. 2): is a factor served by one code alone?"""
    return _one_minus_entropy(importance_DF.T, np.ones(importance_DF.shape[1]))


def linear_probe(codes_ND: np.ndarray, factor_N: np.ndarray) -> float:
    """Return R^2, on the second half, of the least-squares line from codes to factor fitted on the first."""
    half = len(codes_ND) // 2
    design = np.column_stack([codes_ND, np.ones(len(codes_ND))])
    weights = np.linalg.lstsq(design[:half], factor_N[:half], rcond=None)[0]
    left = ((factor_N[half:] - design[half:] @ weights) ** 2).sum()
    whole = ((factor_N[half:] - factor_N[:half].mean()) ** 2).sum()
    return float(1 - left / whole) if whole > 0 else 0.0


def check_codes(codes_ND: np.ndarray, factors_NF: np.ndarray) -> None:
    """Refuse what no score can be had from; raises ExplainInputError."""
    if codes_ND.ndim != 2 or factors_NF.ndim != 2 or len(codes_ND) != len(factors_NF) or codes_ND.shape[1] < 2:
        got = f"{codes_ND.shape} and {factors_NF.shape}"
        raise ExplainInputError("codes and factors", "be [N, D >= 2] and [N, F]", got, "give one row a sample to both")
    if len(codes_ND) < 100:
        raise ExplainInputError("codes", "have at least 100 samples", len(codes_ND), "encode more images")
    still = np.flatnonzero(factors_NF.std(axis=0) == 0).tolist()
    if still:
        raise ExplainInputError("factors", "vary", f"factors {still} with one value", "leave them out")


def _gap(value_DF: np.ndarray) -> float:
    ordered = np.sort(value_DF, axis=0)
    return float((ordered[-1] - ordered[-2]).mean())


def _one_minus_entropy(rows: np.ndarray, weight: np.ndarray) -> float:
    total = rows.sum(axis=1, keepdims=True)
    share = np.divide(rows, total, out=np.full_like(rows, 1 / rows.shape[1]), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    value = 1 + (share * logs).sum(axis=1) / np.log(rows.shape[1])
    return float((value * weight).sum() / max(weight.sum(), 1e-300))


def _discrete(factor_N: np.ndarray) -> np.ndarray:
    values, places = np.unique(factor_N, return_inverse=True)
    return places if len(values) <= DISCRETE else _binned(factor_N)


def _binned(value_N: np.ndarray) -> np.ndarray:
    edges = np.linspace(value_N.min(), value_N.max(), BINS + 1)
    return np.digitize(value_N, edges[1:-1]) if edges[-1] > edges[0] else np.zeros(len(value_N), dtype=int)


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
