"""A classifier as explanations see it: images in [-1, 1] to logits, whatever range and output it has by itself.

All conversions between our range and the classifier's own happen here. Legend: n rows, C channels, H height, W width,
K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ganscale.errors import GanscaleError
from ganscale.explain.errors import CallableError, ExplainInputError, ExplainOptionError, ExplainTargetError

Output = Literal["auto", "logits", "probabilities", "log-probabilities"]
TINY = 1e-12  # below every probability that is told apart from none


class Classifier(nn.Module):
    """Maps float images [n, C, H, W] in [-1, 1] to logits [n, K]; differentiable where ``model`` is.

    ``model`` takes images in ``value_range`` and returns [n, K] logits, probabilities or log-probabilities as
    ``output`` says ("auto": probabilities where rows are not negative and sum to 1, else logits), or one logit a row
    ([n] or [n, 1]), which becomes [0, logit]. ``example`` [N, C, H, W] in [-1, 1] are images it will see: two of
    them are tried. Images are resized to ``size`` (antialiased bilinear) and a gray one repeated over ``channels``,
    where these are given. ``labels`` name the classes; ``facts`` travel with every number it judges, ``notes`` are what
    its user has to know. Raises CallableError where the model does not take such images or returns something else,
    ExplainOptionError for a range that is none and for labels that are not one a class.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        *,
        name: str,
        example: Tensor,
        labels: tuple[str, ...] = (),
        value_range: tuple[float, float] = (-1.0, 1.0),
        output: Output = "auto",
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        differentiable: bool = True,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise ExplainOptionError("the classifier's range", "be LOW,HIGH", value_range, "for example 0,1")
        self.model, self.name, self.value_range = model, name, tuple(map(float, value_range))
        self.labels, self.output, self.differentiable = tuple(labels), output, differentiable
        self.size, self.channels = size, channels
        self.eval()
        found = self._try(example[:2])
        if output == "auto":
            sums = found.sum(dim=1) if found.ndim == 2 else found
            is_shares = found.ndim == 2 and found.shape[1] > 1 and bool((found >= 0).all())
            self.output = "probabilities" if is_shares and bool(((sums - 1).abs() < 1e-3).all()) else "logits"
        with torch.no_grad():
            self.classes = self(example[:2].to(self.device)).shape[1]
        self.notes: tuple[str, ...] = ()
        if self.labels and len(self.labels) != self.classes:
            remedy = "give one for each output, or leave them out"
            raise ExplainOptionError(f"labels of {name}", f"be {self.classes}, one a class", len(self.labels), remedy)
        self.facts = {
            "classifier": name,
            "classes": self.classes,
            "value_range": list(self.value_range),
            "output": self.output,
            **({"resized_to": list(size)} if size else {}),
            **(facts or {}),
        }

    def adopt(self, labels: Sequence[object], *, remedy: str) -> None:
        """Take the names that come with the model; where they are not one a class, do without and note it.

        Raises ExplainOptionError where they are no list of names.
        """
        if not isinstance(labels, (list, tuple)):
            raise ExplainOptionError(f"labels of {self.name}", "be a list of names", labels, "or leave them out")
        if len(labels) == self.classes:
            self.labels = tuple(map(str, labels))
        elif labels:  # names of other classes would mislead
            words = f"{self.name} has {len(labels)} labels for {self.classes} classes: they are left out"
            self.notes = (f"{words}; {remedy}",)

    @property
    def device(self) -> torch.device:
        """Return where the model lives; the CPU where it has no tensors."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [n, K] of images [n, C, H, W] in [-1, 1]."""
        raw = self._raw(images)
        if raw.ndim == 1 or raw.shape[1] == 1:
            logit = raw.reshape(-1, 1)
            if self.output == "probabilities":
                logit = logit.clamp(TINY, 1 - 1e-7).logit()
            return torch.cat([torch.zeros_like(logit), logit], dim=1)
        return raw.clamp_min(TINY).log() if self.output == "probabilities" else raw

    @property
    def has_features(self) -> bool:
        """Whether ``features`` has an answer."""
        own = getattr(self.model, "features", None)
        return callable(own) and not isinstance(own, nn.Module)

    def features(self, images: Tensor) -> Tensor:
        """Return the model's own feature rows [n, F] of images in [-1, 1]; raises CallableError where it has none."""
        if not self.has_features:
            raise CallableError("the classifier", "have features", self.name, "use one trained by ganscale classifier")
        return self.model.features(self._ranged(images))

    def find_class(self, asked: str | int) -> int:
        """Return the index of a class given by number or name; raises ExplainTargetError that lists the nearest."""
        if isinstance(asked, int) and asked < self.classes:
            return asked
        if asked in self.labels:
            return self.labels.index(asked)
        close = difflib.get_close_matches(str(asked).lower(), [label.lower() for label in self.labels], n=3, cutoff=0.4)
        near = [label for label in self.labels if label.lower() in close]
        if len(near) == 1 and near[0].lower() == str(asked).lower():
            return self.labels.index(near[0])
        first = f"did you mean {' or '.join(near)}? " if near else ""
        names = ", ".join(f"{index} {label}" for index, label in enumerate(self.labels)) or f"0 to {self.classes - 1}"
        names = "; ".join((names, *self.notes))
        raise ExplainTargetError(f"class of {self.name}", "be one it knows", str(asked), f"{first}classes: {names}")

    def label(self, index: int) -> str:
        """Return the name of a class, or its number where it has none."""
        return self.labels[index] if self.labels else str(index)

    def _ranged(self, images: Tensor) -> Tensor:
        low, high = self.value_range
        if self.channels is not None and images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        if self.size is not None and images.shape[2:] != self.size:
            images = interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False)
        return images if (low, high) == (-1.0, 1.0) else (images + 1) * ((high - low) / 2) + low

    def _raw(self, images: Tensor) -> Tensor:
        try:
            return self.model(self._ranged(images))
        except GanscaleError:
            raise
        except Exception as error:  # any framework's own kind; the cause stays attached
            low, high = self.value_range
            wanted = f"{'x'.join(map(str, images.shape[1:]))} in [{low:g}, {high:g}]"
            words = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:200]
            remedy = "use a classifier of such images; --classifier-range LOW,HIGH says another range"
            raise CallableError(f"classifier {self.name}", f"take images of {wanted}", words, remedy) from error

    def _try(self, example: Tensor) -> Tensor:
        if example.ndim != 4 or len(example) == 0:
            raise ExplainInputError("example images", "be [N, C, H, W]", tuple(example.shape), "give at least one")
        with torch.no_grad():
            found = self._raw(example.to(self.device))
        if not isinstance(found, Tensor) or found.ndim not in (1, 2) or len(found) != len(example):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            rule = f"return one row of class scores an image, shape ({len(example)}, K)"
            raise CallableError(f"classifier {self.name}", rule, got, "return its logits")
        if not found.is_floating_point():
            rule = "return floating-point class scores"
            raise CallableError(f"classifier {self.name}", rule, str(found.dtype), "return its logits, before rounding")
        if not torch.isfinite(found).all():
            rule = "return finite numbers"
            raise CallableError(f"classifier {self.name}", rule, "NaN or infinity", "look at its weights and range")
        return found
