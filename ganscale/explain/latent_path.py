"""What stands for "absent" of a latent, and the way from there: draws of the prior, on great circles.

z = 0 is no typical latent of a normal prior in many dimensions (its norm is near sqrt(D)), and a straight line to it
leaves where the generator was trained. So a latent is compared with several draws of the prior, and paths turn from
each draw to the latent while the norm changes evenly (White 2016, arXiv:1609.04468, section 2).

Legend: R draws, S points of a path, D latent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

PRIOR_DRAWS = 16
LEAST_SINE = 1e-6  # below it two latents lie in one line, and the straight way is the same


def great_circle(start_RD: Tensor, end_D: Tensor, times_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return points [R, S, D] of the ways from each start to ``end`` at times in [0, 1], and their speeds d/dt."""
    from_R, to = start_RD.norm(dim=1), end_D.norm()
    one_RD, other_D = start_RD / from_R[:, None], end_D / to
    cosine_R = (one_RD @ other_D).clamp(-1, 1)
    angle = cosine_R.acos()[:, None, None]
    sine = angle.sin()
    t = times_S[None, :, None]
    one, other = one_RD[:, None], other_D[None, None]
    on_circle = (((1 - t) * angle).sin() * one + (t * angle).sin() * other) / sine
    turning = angle * ((t * angle).cos() * other - ((1 - t) * angle).cos() * one) / sine
    norm = (1 - t) * from_R[:, None, None] + t * to
    points, speeds = norm * on_circle, (to - from_R)[:, None, None] * on_circle + norm * turning
    line = sine < LEAST_SINE
    straight = start_RD[:, None] + t * (end_D - start_RD)[:, None]
    even = (end_D - start_RD)[:, None].expand_as(straight)
    return torch.where(line, straight, points), torch.where(line, even, speeds)


def integrate_from_prior(gradients: Callable[[Tensor], Tensor], draws_RD: Tensor, end_D: Tensor, steps: int) -> Tensor:
    """Return the integrated gradients [D], float64, along the great circles from each draw, averaged over the draws.

    ``gradients`` maps rows [n, D] to df/dz [n, D]. They sum to f(end) - mean f(draws), as far as the rule
    (Gauss and Legendre's, of ``steps`` points) is exact.
    """
    nodes_S, weights_S = np.polynomial.legendre.leggauss(steps)
    times_S, weights_S = torch.from_numpy((nodes_S + 1) / 2), torch.from_numpy(weights_S / 2)
    points, speeds = great_circle(draws_RD.double(), end_D.double(), times_S)
    slopes = gradients(points.flatten(0, 1).to(end_D.dtype)).double().reshape(points.shape)
    return (slopes * speeds * weights_S[None, :, None]).sum(dim=1).mean(dim=0)
