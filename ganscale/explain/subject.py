"""What is explained: a callable with its networks, its value range, and the checks that it keeps the contract.

The contract: ``fn`` maps [n, ...] to [n], row by row, in finite numbers. Networks are put into eval mode while they are
looked at and come back as they were, also after an exception.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ganscale.errors import GanscaleError
from ganscale.explain.beside import Beside
from ganscale.explain.classifier import Classifier
from ganscale.explain.errors import CallableError, ExplainInputError, ZeroGradientError
from ganscale.explain.labels import labels_as_latents, of_images, plain_network
from ganscale.explain.targets import Parts, build_target
from ganscale.explain.types import FUNCTION, Target

ROW_TOLERANCE = 1e-4  # of scale: how far a row's value may depend on the rows beside it
RANGE_TOLERANCE = 1e-4  # of the range's width
IMAGE_RANGE = (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """Generator and critic as they were after ``images`` images of training."""

    images: int
    generator: nn.Module
    critic: nn.Module


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is explained.

    ``fn`` maps inputs [n, ...] to [n] and is what attributions explain; ``module`` holds every network behind it.
    ``generator`` (z [n, D] -> [n, C, H, W]), ``critic`` ([n, C, H, W] -> [n]) and ``classifier`` (images to logits
    [n, K]) serve the methods that look at them. ``value_range`` is the declared range of fn's input, or None where it
    has no bounds (points, latents). ``target`` says in words what ``fn`` computes. ``domain`` is what fn takes: "x", or
    "z" where it is a function of the latent; ``score_images`` is then the same of images, where that exists.
    ``companions`` [g - 1, ...] are the rows that stand beside each row in a critic that looks across its batch.
    ``segmenter`` maps images to the masks [n, K, H, W] (above a half: inside) of the ``concepts``, K names.
    ``earlier`` are the networks as they were before, the oldest first, for methods that look back.

    A generator may take labels, G(z, label [n]), where it says ``latent`` and ``classes`` (the classifier's, where it
    does not): the labels then become latents (``labels.Labelled``). A critic with two heads that says ``classes`` is
    asked for real or fake. Raises CallableError for a critic that cannot do without a label.
    """

    name: str
    fn: Callable[[Tensor], Tensor]
    module: nn.Module | None = None
    generator: nn.Module | None = None
    critic: Callable[[Tensor], Tensor] | None = None
    value_range: tuple[float, float] | None = IMAGE_RANGE
    target: Target = FUNCTION
    classifier: Classifier | None = None
    domain: Literal["x", "z"] = "x"
    score_images: Callable[[Tensor], Tensor] | None = None
    companions: Tensor | None = None
    segmenter: Callable[[Tensor], Tensor] | None = None
    concepts: tuple[str, ...] = ()
    earlier: tuple[Earlier, ...] = ()

    def __post_init__(self) -> None:
        classes = None if self.classifier is None else self.classifier.classes
        was = [replace(one, generator=labels_as_latents(one.generator, classes)) for one in self.earlier]
        object.__setattr__(self, "generator", labels_as_latents(self.generator, classes))
        object.__setattr__(self, "earlier", tuple(was))
        if isinstance(self.critic, nn.Module):
            critic = of_images(self.critic)
            if critic is None:
                remedy = "give it one: ganscale.explain.OneLabel(critic, 0)"
                raise CallableError("the critic", "take images alone", "one that wants labels too", remedy)
            object.__setattr__(self, "critic", critic)

    @property
    def modules(self) -> list[nn.Module]:
        """Return the networks behind this subject, each once."""
        critic = self.critic if isinstance(self.critic, nn.Module) else None
        parts = (self.module, self.generator, critic, self.classifier)
        found = [module for module in parts if module is not None]
        return list({id(module): module for module in found}.values())

    @property
    def encoder(self) -> nn.Module | None:
        """Return the generator where it can also encode images, as an autoencoder's can."""
        network = plain_network(self.generator)
        return network if callable(getattr(network, "encode", None)) else None

    @property
    def device(self) -> torch.device:
        """Return where the networks live; the CPU where there are none."""
        for module in self.modules:
            for tensor in (*module.parameters(), *module.buffers()):
                return tensor.device
        return torch.device("cpu")

    @property
    def rows_a_row(self) -> int:
        """Return how many rows of the network one row of fn costs."""
        return 1 if self.companions is None else 1 + len(self.companions)

    @property
    def differentiable(self) -> bool:
        """Whether fn has a gradient: all have but a classifier that is run outside torch."""
        return not self.target.of_classifier or self.classifier is None or self.classifier.differentiable

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold all networks, the earlier ones too, in eval mode with frozen parameters; modes, requires_grad and RNG
        state come back.
        """
        held = [*self.modules, *(network for one in self.earlier for network in (one.generator, one.critic))]
        modes = [(part, part.training) for module in held for part in module.modules()]
        gradients = [(p, p.requires_grad) for module in held for p in module.parameters()]
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            try:
                for module in held:
                    module.eval().requires_grad_(False)
                yield
            finally:
                for part, training in modes:
                    part.training = training
                for parameter, requires_grad in gradients:
                    parameter.requires_grad_(requires_grad)


def subject_of_run(
    *,
    target: str | Target,
    critic: nn.Module | None,
    generator: nn.Module | None = None,
    classifier: Classifier | None = None,
    value_range: tuple[float, float] | None = IMAGE_RANGE,
    reference: Tensor | None = None,
    companions: Tensor | None = None,
) -> Subject:
    """Build the subject for trained networks: ``target`` as ``Target.parse`` reads it ("critic", "class:3@G", ...).

    The critic is explained by its raw logit, never through a sigmoid: on a saturated one no gradient is left.
    ``reference`` [1, C, H, W] is what distances are measured from; ``companions`` [g - 1, C, H, W] are real images that
    stand beside each row where the critic looks across its batch. Raises ExplainTargetError or LayerError.
    """
    asked = Target.parse(target) if isinstance(target, str) else target
    judged = critic if companions is None or critic is None else Beside(critic, companions)
    generator = labels_as_latents(generator, None if classifier is None else classifier.classes)
    parts = Parts(critic=judged, generator=generator, classifier=classifier, reference=reference)
    target, fn, score_images = build_target(asked, parts)
    domain = "z" if target.of_generator else "x"
    of_critic = target.kind == "critic" or str(target.layer).startswith("D.")
    return Subject(
        name=str(target),
        fn=fn,
        module=_networks_behind(target, critic=critic, generator=generator, classifier=classifier),
        generator=generator,
        critic=None if judged is None else of_images(judged, target.label),
        value_range=value_range if domain == "x" else None,
        target=target,
        classifier=classifier,
        domain=domain,
        score_images=score_images,
        companions=companions if of_critic else None,
    )


def _networks_behind(
    target: Target, *, critic: nn.Module | None, generator: nn.Module | None, classifier: Classifier | None
) -> nn.Module | None:
    """Return the network that a resolved target is computed by; G and what judges its images, in this order."""
    judge = ("C", classifier) if target.of_classifier else ("D", critic)
    if not target.of_generator:
        return judge[1]
    drawing = plain_network(generator)
    of_generator_alone = target.kind == "region" or str(target.layer).startswith("G.")
    return drawing if of_generator_alone else nn.ModuleDict({"G": drawing, judge[0]: judge[1]})


def weights_hash(modules: list[nn.Module]) -> str | None:
    """Return the SHA-256 over names, shapes and bytes of all parameters and buffers; None without a network."""
    if not modules:
        return None
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def are_images(x: Tensor) -> bool:
    """Whether samples [N, ...] have pixels beside each other; latents and points [N, C, 1, 1] have none."""
    return x.ndim == 4 and x.shape[2:].numel() > 1


def check_samples(x: object, *, name: str) -> None:
    """Refuse what is no batch of finite floating-point samples [N, ...] with N >= 1; raises ExplainInputError."""
    if not isinstance(x, Tensor):
        raise ExplainInputError(f"inputs[{name!r}]", "be a tensor [N, ...]", type(x).__name__, "pass a torch tensor")
    if x.dtype not in (torch.float32, torch.float64):
        raise ExplainInputError(
            f"inputs[{name!r}]",
            "be float32 or float64, as integers have no gradient",
            str(x.dtype),
            "convert images with ganscale.data's to_float",
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ExplainInputError(
            f"inputs[{name!r}]", "hold at least one sample, [N, ...]", tuple(x.shape), "pass [1, ...]"
        )
    if not torch.isfinite(x).all():
        raise ExplainInputError(f"inputs[{name!r}]", "be finite", "NaN or infinite values", "look at how it was made")


def check_range(x: Tensor, value_range: tuple[float, float] | None) -> list[str]:
    """Refuse samples outside the declared range (never clamp them) and return warnings about suspicious ones."""
    if value_range is None:
        return []
    low, high = value_range
    least, most = float(x.min()), float(x.max())
    slack = RANGE_TOLERANCE * (high - low)
    if least < low - slack or most > high + slack:
        raise ExplainInputError(
            "inputs",
            f"lie in the declared range [{low:g}, {high:g}]",
            f"[{least:g}, {most:g}]",
            "rescale them, or declare their range with value_range",
        )
    if low == -1 and high == 1 and least >= 0 and most > 0.5 and x.shape[0] * x[0].numel() >= 64:
        words = f"inputs lie in [{least:g}, {most:g}] while [-1, 1] is declared; were they meant to be rescaled?"
        return [words]
    return []


def looks_across_its_batch(critic: nn.Module, rows: Tensor) -> bool:
    """Whether the critic's value of a row depends on the rows beside it, as with minibatch standard deviation."""
    with Subject(name="critic", fn=critic, module=critic).quiet(), torch.no_grad():
        together, alone = critic(rows), torch.cat([critic(row) for row in rows.split(1)])
    scale = max(float(together.abs().max()), float((together.max() - together.min()).abs()), 1e-12)
    return bool(float((together - alone).abs().max()) > ROW_TOLERANCE * scale)


def check_callable(subject: Subject, x: Tensor, companion: Tensor, *, gradient: bool) -> None:
    """Check once a job, on two rows, that fn keeps the contract; raises CallableError or ZeroGradientError.

    ``x`` [n, ...] are samples; ``companion`` [1, ...] stands in for a second one that differs. Rows must not depend on
    one another: minibatch statistics, or a batch norm that is still in train mode, would make every perturbation a
    lie.
    """
    second = x[1:2] if len(x) > 1 and not torch.equal(x[0], x[1]) else companion
    rows = torch.cat([x[:1], second]).to(subject.device)
    together, alone = _called(subject, rows, gradient=gradient)
    for value, count in ((together, 2), (alone[0], 1)):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if got != (count,):
            raise CallableError(
                "the callable", f"return one number a row, shape ({count},)", got, "reduce it, e.g. fn(x).squeeze(1)"
            )
    if not torch.isfinite(together).all():
        raise CallableError("the callable", "return finite numbers", together.tolist(), "look at the network's weights")
    if gradient and not together.requires_grad:
        raise ZeroGradientError(
            "the callable",
            "be differentiable in its input",
            "a detached result",
            "remove detach(), no_grad or rounding",
        )
    together, alone_N = together.detach().double(), torch.cat(alone).detach().double()
    scale = max(float(together.abs().max()), float((together[0] - together[1]).abs()), 1e-12)
    moved = float((together - alone_N).abs().max())
    if moved > ROW_TOLERANCE * scale:
        raise CallableError(
            "the callable",
            f"treat rows independently, within {ROW_TOLERANCE:g} of scale",
            f"a change of {moved / scale:.2g} when a row stands alone",
            "remove what looks across the batch: batch norm in train mode, minibatch standard deviation; or give each "
            "row the same companions",
        )


def _called(subject: Subject, rows: Tensor, *, gradient: bool) -> tuple[Tensor, list[Tensor]]:
    """Return fn of the rows together and one by one; raises CallableError for whatever a user's function raises."""
    with subject.quiet(), torch.enable_grad():
        try:
            together = subject.fn(rows.clone().requires_grad_(gradient))
            alone = [subject.fn(row.clone()) for row in rows.split(1)]
        except GanscaleError:
            raise
        except Exception as error:  # whatever a user's function raises
            words = next(iter(str(error).splitlines()), "")
            words = words if isinstance(error, RuntimeError) else f"{type(error).__name__}: {words}"
            raise CallableError(
                "the callable",
                f"accept inputs of shape {tuple(rows.shape)}",
                words,
                "check size and channels of the inputs",
            ) from error
    return together, alone
