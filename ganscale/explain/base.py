"""What all explainers share: the four steps, validated options, counted and micro-batched evaluation.

Legend: n rows, D latent.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ganscale import ops
from ganscale.errors import nearest, unknown
from ganscale.explain.errors import CallableError, ExplainInputError, ExplainOptionError, ExplainTargetError
from ganscale.explain.labels import label_numbers
from ganscale.explain.passes import frozen_function, is_watched, layout_of_rows, rows_a_pass
from ganscale.explain.plan import Chunk, Partial, Request, first_rows, merge
from ganscale.explain.subject import Subject, check_samples, weights_hash
from ganscale.explain.types import Explanation, Score

SCORING = 1 << 20  # the part number of scoring chunks: above every other part, so that streams never meet


class Options(BaseModel):
    """Options of every method. The description of each is what ``ganscale list options METHOD`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    micro_batch: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"] = Field(
        "auto", description="rows of one forward pass; auto: by the size of the images"
    )


def check_serves(explainer: type[Explainer], subject: Subject) -> None:
    """Refuse a subject that the method cannot serve; raises ExplainTargetError or CallableError."""
    for what in explainer.needs:
        if getattr(subject, what) is None:
            remedy = "pass --classifier NAME|PATH" if what == "classifier" else "explain a run that has one"
            raise ExplainTargetError("the subject", f"have {_a(what)} for {explainer.name}", subject.name, remedy)
    if subject.domain not in explainer.domains:
        rule = f"be a function of {'images' if subject.domain == 'z' else 'the latent'} for {explainer.name}"
        remedy = "leave @G out" if subject.domain == "z" else "write @G behind it"
        raise ExplainTargetError("target", rule, subject.name, remedy)
    if explainer.needs_gradient and not subject.differentiable:
        got = f"{subject.classifier.name}, which is run outside torch"
        remedy = "use kernel-shap, lime or occlusion, which need its outputs alone"
        raise CallableError("the target", f"have a gradient for {explainer.name}", got, remedy)


class Meter:
    """Evaluates rows for one chunk and counts them.

    ``tolerant``: what is not finite becomes NaN instead of an error. A control that fails for one sample is then
    lacked by that sample alone.
    """

    tolerant = False

    def __init__(
        self, subject: Subject, micro_batch: int, layout: torch.memory_format, frozen: ops.Frozen | None = None
    ) -> None:
        self.subject = subject
        self.layout = layout
        self.frozen = frozen
        self.device = subject.device
        self.micro_batch = micro_batch
        self.rows_forward = 0
        self.rows_backward = 0

    @property
    def ready(self) -> ops.Frozen | None:
        """The explained function frozen, unless somebody watches its passes."""
        return None if is_watched(self.subject) else self.frozen

    def evaluate(self, fn: Callable[[Tensor], Tensor], count: int, build: Callable[[slice], Tensor]) -> np.ndarray:
        """Return fn of ``count`` rows as float64 [count]; ``build(slice)`` makes the rows of one micro-batch.

        Every forward has exactly ``micro_batch`` rows (the last row is repeated), because a network's bits may depend
        on that number. Raises CallableError where a value is not finite.
        """
        self.rows_forward += count * self.subject.rows_a_row
        found, own = [], fn is self.subject.fn
        if own and (ready := self.ready) is not None:
            fn = ready.follow()  # the weights may be shuffled ones
        with torch.no_grad():
            for start in range(0, count, self.micro_batch):
                rows = build(slice(start, min(start + self.micro_batch, count))).to(self.device)
                short = self.micro_batch - len(rows)
                if short:
                    rows = torch.cat([rows, rows[-1:].expand(short, *rows.shape[1:])])
                if own and rows.ndim == 4:
                    rows = rows.contiguous(memory_format=self.layout)
                found.append(fn(rows)[: self.micro_batch - short].double().cpu())
        return self.finite(torch.cat(found), "the callable", "return finite numbers").numpy()

    def finite(self, values: Tensor, what: str, rule: str) -> Tensor:
        """Return ``values``, of which all must be finite; raises CallableError, unless this meter is tolerant."""
        good = torch.isfinite(values)
        if good.all():
            return values
        if not self.tolerant:
            raise CallableError(what, rule, "NaN or infinity on a perturbed row", "look at the network's weights")
        return values.where(good, torch.nan)


class Explainer(ABC):
    """A method: built anew in each worker from the subject (with the networks) and the request (without them).

    Subclasses set ``name``, ``summary``, ``Options``, ``primary`` and write ``plan``, ``compute`` and ``finish``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    primary: ClassVar[tuple[str, ...]]
    banner: ClassVar[str] = ""  # what a result not better than its control means, where that is no failure
    Options: ClassVar[type[Options]] = Options
    input_name: ClassVar[str] = "x"
    needs: ClassVar[tuple[str, ...]] = ()  # of "generator", "critic", "classifier": refused by name where missing
    wants: ClassVar[tuple[str, ...]] = ()  # the same, but what a run lacks is done without
    needs_gradient: ClassVar[bool] = False  # of the target
    many_passes: ClassVar[bool] = False  # whether it evaluates the target itself on many rows
    #: Inputs with rows of their own, and how many a run should give: "real" and "held_out" images (each with
    #: NAME_labels), "latents". A caller may leave them out.
    beside: ClassVar[Mapping[str, int]] = MappingProxyType({})
    least_samples: ClassVar[int] = 1  # below which the method refuses; what runs every method asks for as many
    domains: ClassVar[tuple[str, ...]] = ("x", "z")  # what the explained function may take: images, latents
    pieces: ClassVar[str] = "samples"  # of what there is less in an explanation that was stopped early
    rounds_apart: ClassVar[bool] = True  # whether later rounds too are of a piece each, and not of all that are there
    together: ClassVar[str] = "its result is of all samples together"  # why a method has no interim result

    def __init__(self, subject: Subject, request: Request) -> None:
        assert request.method == self.name, (request.method, self.name)
        self.subject = subject
        self.request = request
        self.options = parse_options(type(self), request.options)
        asked = self.options.micro_batch
        self.micro_batch = rows_a_pass(subject, request.inputs[self.input_name]) if asked == "auto" else asked

    @cached_property
    def layout(self) -> torch.memory_format:
        """How rows of images lie in memory."""
        return layout_of_rows(self.subject, self.request.inputs[self.input_name])

    @cached_property
    def frozen(self) -> ops.Frozen | None:
        """The explained function made ready for passes of ``micro_batch`` rows, where that pays."""
        if not self.many_passes:
            return None
        return frozen_function(self.subject, self.request.inputs[self.input_name], self.micro_batch, self.layout)

    @property
    def samples_apart(self) -> bool:
        """Whether each piece is explained apart from the others: the first k alone give the same values for them.

        ``place_of`` says which piece a chunk begins with. Such a method may be stopped early.
        """
        return False

    @property
    def total(self) -> int:
        """Return how many pieces there are."""
        return len(self.request.inputs[self.input_name])

    def place_of(self, chunk: Chunk) -> int:
        """Return the first piece that a chunk of the first round serves."""
        return chunk.explanation

    def sweep_of(self, chunk: Chunk) -> int | None:
        """Return which sweep a chunk of the first round belongs to, where a map may be drawn until it is narrow enough.

        Sweep 0 is needed in any case. None: nothing is drawn.
        """
        return None

    def is_control(self, chunk: Chunk) -> bool:
        """Whether a chunk of the first round makes a control and not the map itself."""
        return False

    def interval_widths(self, partial: Partial) -> list[float]:
        """Return for each sample its widest 95 % interval of any share, as a part of its map's largest share.

        ``partial`` is a fold of chunks of the first round. Zero where nothing is drawn.
        """
        return [0.0] * len(self.request.inputs[self.input_name])

    def first(self, count: int) -> Explainer:
        """Return this explainer for its first ``count`` pieces alone."""
        return type(self)(self.subject, first_rows(self.request, type(self), count))

    def with_options(self, **options: Any) -> Explainer:
        """Return this explainer with other options."""
        return type(self)(self.subject, replace(self.request, options=self.request.options | options))

    @abstractmethod
    def plan(self, previous: Partial | None = None) -> list[Chunk]:
        """Return the chunks of the round after ``previous`` (None: the first); an empty list ends the work."""

    @abstractmethod
    def compute(self, chunk: Chunk, meter: Meter) -> dict[str, Any]:
        """Return the arrays of one chunk; called with the networks held in eval mode."""

    @abstractmethod
    def finish(self, partial: Partial) -> Explanation:
        """Return the explanation of the fold of all rounds."""

    def run(self, chunk: Chunk) -> Partial:
        """Compute one chunk; the same chunk gives the same partial wherever it runs (its cost apart)."""
        began = time.perf_counter()
        with self.subject.quiet():
            meter = Meter(self.subject, self.micro_batch, self.layout, self.frozen)
            data = self.compute(chunk, meter)
        return Partial(
            round=chunk.round,
            items=((chunk.round, chunk.explanation, chunk.part, data),),
            rows_forward=meter.rows_forward,
            rows_backward=meter.rows_backward,
            seconds=time.perf_counter() - began,
        )

    def merge(self, left: Partial, right: Partial) -> Partial:
        """Join two neighbouring folds; ``left`` is earlier in chunk order."""
        return merge(left, right)

    def explanation(
        self,
        partial: Partial,
        *,
        values: dict[str, Tensor],
        inputs: dict[str, Tensor],
        scores: dict[str, Score],
        meta: Mapping[str, Any],
    ) -> Explanation:
        """Assemble the result with what every method records about itself."""
        common = {
            "summary": self.summary,
            "subject": self.subject.name,
            "seed": self.request.seed,
            "options": self.options.model_dump(mode="json"),
            "primary": [name for name in self.primary if name in scores],
            "plan": {
                "chunks": len(partial.items),
                "rounds": partial.round + 1,
                "micro_batch": self.micro_batch,
            },
            "value_range": list(self.subject.value_range) if self.subject.value_range else None,
            "weights_sha256": weights_hash(self.subject.modules),
            **({"banner": self.banner} if self.banner else {}),
            **({"classifier": self.subject.classifier.facts} if self.subject.classifier is not None else {}),
            **({"companions": len(self.subject.companions)} if self.subject.companions is not None else {}),
            **({"label_numbers": labels} if (labels := label_numbers(self.subject.generator)) else {}),
            "versions": {"ganscale": _version("ganscale"), "torch": torch.__version__, "numpy": np.__version__},
            "cost": {
                "rows_forward": partial.rows_forward,
                "rows_backward": partial.rows_backward,
                "worker_seconds": partial.seconds,
            },
        }
        notes = () if self.subject.classifier is None else self.subject.classifier.notes
        meta = {**meta, "warnings": [*notes, *meta.get("warnings", ())]}
        return Explanation(
            method=self.name,
            target=self.subject.target,
            values={name: tensor.detach().cpu().contiguous() for name, tensor in values.items()},
            inputs={name: tensor.detach().cpu().contiguous() for name, tensor in inputs.items()},
            scores=scores,
            meta={**common, **meta},
        )


def parse_options(explainer: type[Explainer], options: Mapping[str, Any]) -> Options:
    """Validate options, given as values or as text; raises ExplainOptionError that names the nearest or the rule."""
    known = explainer.Options.model_fields
    for key in options:
        if key not in known:
            remedy = nearest(key, known)
            remedy += f" known: {', '.join(sorted(known))}" if remedy.startswith("did you mean") else ""
            raise ExplainOptionError(f"option of {explainer.name}", "be a known option", key, remedy)
    try:
        return explainer.Options.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "options"
        rule = first["msg"].removeprefix("Input should ").removeprefix("Value error, ")
        raise ExplainOptionError(
            f"{explainer.name} option {key}", rule, first["input"], f"change it with --set {key}=..."
        ) from None


def make_request(
    explainer: type[Explainer],
    inputs: Tensor | Mapping[str, Tensor],
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Request:
    """Validate inputs and options into a request with every default written out.

    ``inputs`` is the samples [N, ...], or a mapping that holds them under the method's input name ("x" for
    attributions, "z" for directions) beside other tensors with N rows that are kept with the result (``generated``,
    ``labels``). Raises ExplainInputError or ExplainOptionError.
    """
    name = explainer.input_name
    given = {name: inputs} if isinstance(inputs, Tensor) else dict(inputs)
    if name not in given:
        raise ExplainInputError(
            "inputs", f"hold {name!r} for {explainer.name}", sorted(given), f"pass {{{name!r}: ...}}"
        )
    check_samples(given[name], name=name)
    count = len(given[name])
    for key, tensor in given.items():
        if key.removesuffix("_labels") in explainer.beside and isinstance(tensor, Tensor):
            continue
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != count:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ExplainInputError(
                f"inputs[{key!r}]", f"have {count} rows like {name!r}", got, "pass one row a sample"
            )
    if not isinstance(seed, int) or seed < 0:
        raise ExplainOptionError("seed", "be a whole number of at least 0", seed, "for example seed=0")
    resolved = parse_options(explainer, options or {}).model_dump(mode="json")
    kept = {key: tensor.detach().cpu().contiguous() for key, tensor in given.items()}
    return Request(method=explainer.name, inputs=kept, seed=seed, options=resolved)


def find_explainer(method: str, explainers: Mapping[str, type[Explainer]]) -> type[Explainer]:
    """Return the class of ``method``; raises ExplainOptionError that lists the nearest names."""
    if method not in explainers:
        raise unknown("method", method, explainers, error=ExplainOptionError)
    return explainers[method]


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was not installed
        return None
