"""What a generator would draw where parts of an image are missing: of many images it made, the one that fits best.

The absent part of each coalition is taken from the generated image that is nearest (squared distance) to the sample on
the parts that are present. Searching a bank is no inversion: the seam may show, yet what fills a hole is a piece of a
plausible image and not a black or blurred block, at the price of one matrix product instead of one optimisation a row.

Legend: K images of the bank, M players, n rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ganscale.explain.cells import cell_sums
from ganscale.explain.errors import ExplainOptionError
from ganscale.explain.subject import Subject

IMAGES_A_PASS = 64


class Inpainting:
    """Finds the image of a bank that fits; ``draw`` makes the bank [K, C, H, W] when it is first asked."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw = draw
        self._last: tuple[Tensor, Tensor, np.ndarray] | None = None  # x, segments and distances of the last call

    @cached_property
    def bank(self) -> Tensor:
        """The images, the most typical one (nearest to their mean) first."""
        drawn = self._draw()
        away_K = (drawn - drawn.mean(dim=0)).double().flatten(1).square().sum(dim=1)
        return drawn[away_K.argsort(stable=True)]

    def best(self, x: Tensor, present_nM: np.ndarray, segments: Tensor) -> Tensor:
        """Return which image of the bank fits what each coalition shows of sample ``x`` [C, H, W] best, int64 [n].

        Of equally near ones the more typical; so where nothing is there, the most typical of all.
        """
        return torch.from_numpy((present_nM.astype(float) @ self._away(x, segments).T).argmin(axis=1))

    def _away(self, x: Tensor, segments: Tensor) -> np.ndarray:
        """Return how far each image of the bank is from ``x`` on each player [K, M]; once for a sample's chunks."""
        if self._last is None or not (torch.equal(self._last[0], x) and torch.equal(self._last[1], segments)):
            self._last = x, segments, cell_sums((self.bank - x).double().square(), segments)
        return self._last[2]


def draw_later(subject: Subject, count: int, shape: tuple[int, ...], rng: np.random.Generator) -> Callable[[], Tensor]:
    """Return what draws ``count`` images of the subject's generator from the normal prior, on the CPU.

    Raises ExplainOptionError, at once, where there is no generator, or where its images have not the ``shape``
    (C, H, W).
    """
    latent, remedy = getattr(subject.generator, "latent", None), "leave fill out"
    if subject.generator is None or latent is None or subject.domain != "x":
        rule = "be baseline for what has no generator of such images"
        raise ExplainOptionError("fill", rule, f"generator, for {subject.name}", remedy)
    z = torch.from_numpy(rng.standard_normal((count, latent))).float()

    def draw(z: Tensor = z) -> Tensor:
        with subject.quiet(), torch.no_grad():
            return torch.cat([subject.generator(part.to(subject.device)).cpu() for part in z.split(IMAGES_A_PASS)])

    if (made := tuple(draw(z[:1]).shape[1:])) != shape:
        raise ExplainOptionError("fill", f"be baseline for samples of shape {shape}", f"generator, of {made}", remedy)
    return draw
