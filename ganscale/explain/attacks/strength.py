"""Does an attack behave as attacks must? Where it does not, its gradients are masked and robustness is not shown.

Athalye et al. 2018 (arXiv:1802.00420, section 3.1) list the signs: steps together do worse than one, a gradient does
worse than chance, a larger ball holds fewer adversarial samples.

Legend: N samples, E budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SLACK = 0.01  # of the larger drop: what rounding and a single sample may turn


def masking_signs(drops: Mapping[str, np.ndarray], *, held_NE: np.ndarray, budgets: Sequence[float]) -> list[str]:
    """Return, in words, every sign of masked gradients.

    ``drops`` has the fall of the margin [N, E] under "noise", "fgsm" and "pgd"; ``held_NE`` says where the verdict
    withstood the strongest attack.
    """
    mean = {name: drop_NE.mean(axis=0) for name, drop_NE in drops.items()}
    words = []
    for weaker, stronger in (("fgsm", "pgd"), ("noise", "fgsm")):
        slack_E = SLACK * np.maximum(np.abs(mean[weaker]), np.abs(mean[stronger]))
        bad = np.flatnonzero(mean[stronger] < mean[weaker] - slack_E)
        if len(bad):
            at = ", ".join(f"{budgets[place]:g}" for place in bad)
            words.append(f"gradient masking? {stronger} moves the verdict less than {weaker} at budget {at}")
    held_E = held_NE.mean(axis=0)
    rises = np.flatnonzero(np.diff(held_E) > 1 / len(held_NE))
    if len(rises):
        at = ", ".join(f"{budgets[place + 1]:g}" for place in rises)
        words.append(f"gradient masking? more verdicts withstand pgd at the larger budget {at}")
    return words
