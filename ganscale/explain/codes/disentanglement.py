"""Does each number of a code stand for one factor of the data? MIG, SAP, DCI and probes beside shuffled codes.

Asked of an encoder, on images whose factors are known: drawn figures, or samples of a generator with their latents.

Legend: N samples, D numbers of a code, F factors, R shuffles.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ganscale.explain.base import Explainer, Meter
from ganscale.explain.codes import measures
from ganscale.explain.codes.autoencoder import encode, small_pictures
from ganscale.explain.errors import ExplainInputError
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.scores import against_random
from ganscale.explain.subject import Subject
from ganscale.explain.types import Explanation

KNOWN = 1000
SHUFFLES = 5  # of the code; each is learned by trees as the code is
PARTS = ("importance", "information", "correlation")
NUMBERS = ("entropy", "learned", "probe")


class Disentanglement(Explainer):
    """Which number of the code is which factor, and how cleanly."""

    name = "disentanglement"
    summary = "which number of a code stands for which known factor: MIG, DCI, SAP and probes beside a shuffled code"
    primary = ("dci_disentanglement",)
    needs = ("encoder",)
    beside = MappingProxyType({"known": KNOWN})

    def __init__(self, subject: Subject, request: Request) -> None:
        super().__init__(subject, request)
        if "known" not in request.inputs or "known_labels" not in request.inputs:
            remedy = "explain an autoencoder of --data shapes or run:RUN, or pass both"
            got = ", ".join(request.inputs)
            raise ExplainInputError("inputs", "hold 'known' images and 'known_labels', their factors", got, remedy)
        self.known = request.inputs["known"]
        self.factors_NF = request.inputs["known_labels"].double().numpy()

    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return one chunk a factor; trees are what takes time."""
        if previous is not None:
            return []
        measures.check_codes(np.zeros((len(self.known), 2)), self.factors_NF)
        return [Chunk(round=0, index=place, explanation=place, part=0) for place in range(self.factors_NF.shape[1])]

    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Encode all images and measure one factor against the code and against the codes of other images."""
        codes_ND = encode(self.subject.encoder, self.known, meter).double().numpy()
        rng = chunk.rng(self.request.seed)
        own = self._measure(codes_ND, chunk.explanation)
        shuffled = [self._measure(codes_ND[rng.permutation(len(codes_ND))], chunk.explanation) for _ in range(SHUFFLES)]
        found = {"own": own, "shuffled": shuffled, "code_spread": codes_ND.std(axis=0)}
        return found | ({"codes": codes_ND} if chunk.explanation == 0 else {})

    def _measure(self, codes_ND: np.ndarray, factor: int) -> dict[str, Any]:
        factor_N = self.factors_NF[:, factor]
        importance, learned = measures.importances(codes_ND, factor_N, seed=self.request.seed)
        information, entropy = measures.mutual_information(codes_ND, factor_N)
        return {
            "importance": importance,
            "information": information,
            "entropy": entropy,
            "correlation": measures.squared_correlation(codes_ND, factor_N),
            "learned": learned,
            "probe": measures.linear_probe(codes_ND, factor_N),
        }

    def finish(self, partial: Partial) -> Explanation:
        """Put the factors side by side and score the code against the shuffled ones."""
        found = [data for _, _, data in partial.of_round(0)]
        own = _side_by_side([data["own"] for data in found])
        shuffled_R = [_side_by_side(factors) for factors in zip(*(data["shuffled"] for data in found), strict=True)]
        chance_R = [_summary(shuffled) for shuffled in shuffled_R]
        count = len(self.known)
        scores = {}
        for name, value in _summary(own).items():
            random_R = np.array([chance[name] for chance in chance_R])
            scores[name] = replace(against_random(np.array([value]), random_R[None], better="higher"), n=count)
        names = {"importance": "factor_importance", "information": "factor_information"}
        values = {names.get(name, f"factor_{name}"): torch.from_numpy(own[name]) for name in (*PARTS, *NUMBERS)}
        values["shuffled_importance"] = torch.from_numpy(shuffled_R[0]["importance"])
        values["codes"] = torch.from_numpy(found[0]["codes"])
        values |= {"code_images": small_pictures(self.known), "code_factors": torch.from_numpy(self.factors_NF)}
        values["code_spread"] = torch.from_numpy(found[0]["code_spread"])
        kept = {key: tensor for key, tensor in self.request.inputs.items() if not key.startswith("known")}
        return self.explanation(
            partial,
            values=values,
            inputs=kept,
            scores=scores,
            meta={"trees": measures.TREES, "depth": measures.DEPTH, "bins": measures.BINS, "known": count},
        )


def _side_by_side(found: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    columns = {name: np.stack([data[name] for data in found], axis=1) for name in PARTS}
    return columns | {name: np.array([data[name] for data in found]) for name in NUMBERS}


def _summary(parts: dict[str, np.ndarray]) -> dict[str, float]:
    return {
        "dci_disentanglement": measures.disentanglement(parts["importance"]),
        "dci_completeness": measures.completeness(parts["importance"]),
        "dci_informativeness": float(parts["learned"].mean()),
        "mig": measures.information_gap(parts["information"], parts["entropy"]),
        "sap": measures.separated(parts["correlation"]),
        "linear_probe_r2": float(parts["probe"].mean()),
    }
