"""Explain what a critic or a generator learned, with a measured faithfulness beside every picture.

``explain`` runs in one process; ``EXPLAINERS`` and ``drive`` let a cluster run the same chunks. A method is added by
one class, one entry in ``EXPLAINERS`` and its name in ``ExplainerName`` of ``ganscale.config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ganscale.explain.anytime import BudgetSpent, Limits, drive
from ganscale.explain.attacks import ATTACKS
from ganscale.explain.base import Explainer, check_serves, find_explainer, make_request
from ganscale.explain.classifier import Classifier
from ganscale.explain.classifier_source import (
    ClassifierSource,
    source_of_lite0,
    source_of_network,
    source_of_object,
    source_of_path,
)
from ganscale.explain.codes import CODES
from ganscale.explain.errors import ExplainOptionError
from ganscale.explain.exact_shapley import ExactShapley
from ganscale.explain.gradients import ExpectedGradients, InputXGradient, Saliency, SmoothGrad
from ganscale.explain.integrated_gradients import IntegratedGradients
from ganscale.explain.kernel_shap import KernelShap
from ganscale.explain.labels import OneLabel, with_label_numbers
from ganscale.explain.latent import LATENT
from ganscale.explain.layer_maps import GradCam, LayerConductance
from ganscale.explain.likeness import LIKENESS
from ganscale.explain.lime import Lime
from ganscale.explain.mprt import Mprt
from ganscale.explain.occlusion import Occlusion
from ganscale.explain.plan import Chunk, Partial, Request
from ganscale.explain.roar import Roar
from ganscale.explain.store import next_directory
from ganscale.explain.subject import IMAGE_RANGE, Earlier, Subject, subject_of_run
from ganscale.explain.types import Explanation, Score, Target
from ganscale.explain.units import UNITS

__all__ = [
    "EXPLAINERS",
    "BudgetSpent",
    "Chunk",
    "Classifier",
    "ClassifierSource",
    "Earlier",
    "Explainer",
    "Explanation",
    "Limits",
    "OneLabel",
    "Partial",
    "Request",
    "Score",
    "Subject",
    "Target",
    "build_explainer",
    "drive",
    "explain",
    "find_explainer",
    "make_request",
    "next_directory",
    "source_of_lite0",
    "source_of_network",
    "source_of_object",
    "source_of_path",
    "subject_of_run",
]

EXPLAINERS: dict[str, type[Explainer]] = {
    explainer.name: explainer
    for explainer in (
        Saliency,
        SmoothGrad,
        InputXGradient,
        IntegratedGradients,
        ExpectedGradients,
        Occlusion,
        GradCam,
        LayerConductance,
        Lime,
        KernelShap,
        ExactShapley,
        Mprt,
        Roar,
        *LATENT,
        *UNITS,
        *ATTACKS,
        *CODES,
        *LIKENESS,
    )
}


def build_explainer(subject: Subject, request: Request) -> Explainer:
    """Build the explainer that ``request.method`` names: in the driver and anew in every worker."""
    explainer = find_explainer(request.method, EXPLAINERS)
    check_serves(explainer, subject)
    return explainer(subject, with_label_numbers(subject.generator, subject.domain, request))


def explain(
    fn: Callable[[Tensor], Tensor] | Subject,
    inputs: Tensor | Mapping[str, Tensor],
    method: str = "integrated-gradients",
    *,
    value_range: tuple[float, float] | str | None = "auto",
    seed: int = 0,
    limits: Limits | None = None,
    **options: Any,
) -> Explanation:
    """Explain ``fn`` at ``inputs`` in this process.

    ``fn`` maps [n, ...] to [n] (for ``directions`` it is the generator, z [n, D] to images), or is a ``Subject`` that
    says more. A network is held in eval mode meanwhile; one hidden inside a function must be in eval mode, or be named
    in a ``Subject``. ``inputs`` are samples [N, ...] or a mapping with them under "x" ("z" for directions).
    ``limits`` ends the work early, with what is finished, and so does Ctrl-C after the first samples:
    ``meta["stopped"]`` then says so.
    ``value_range`` "auto" declares [-1, 1] for images [N, C, H, W] and no bounds for vectors and points. ``options``
    are the method's own (``EXPLAINERS[method].Options``); an unknown one is refused with the nearest names. Raises the
    ``UserError`` family of ``ganscale.explain.errors``.
    """
    explainer = find_explainer(method, EXPLAINERS)
    request = make_request(explainer, inputs, seed=seed, options=options)
    if isinstance(fn, Subject):
        return drive(build_explainer(fn, request), limits=limits)
    if value_range == "auto":
        shape = request.inputs[explainer.input_name].shape
        value_range = IMAGE_RANGE if len(shape) == 4 and shape[2] * shape[3] > 1 else None
    if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
        raise ExplainOptionError("value_range", "be (low, high), None or auto", value_range, "for example (0.0, 1.0)")
    module = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    module = module if isinstance(module, nn.Module) else None
    name = type(fn).__name__ if isinstance(fn, nn.Module) else getattr(fn, "__name__", type(fn).__name__)
    generator = fn if explainer.input_name == "z" else None
    subject = Subject(name=name, fn=fn, module=module, generator=generator, value_range=value_range)
    return drive(build_explainer(subject, request), limits=limits)
