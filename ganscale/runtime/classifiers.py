"""Classifiers by name: trained on a data set once and kept, a file, a function, or EfficientNet-Lite0."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganscale.config import DataConfig
from ganscale.data import DATASETS, open_dataset
from ganscale.errors import UserError, nearest
from ganscale.explain import ClassifierSource, source_of_lite0, source_of_network, source_of_object, source_of_path
from ganscale.explain.classifier_source import LITE0
from ganscale.metrics import InDomainCNN, TrainingSet, in_domain_classifier, save_classifier
from ganscale.runtime.threads import one_thread

if TYPE_CHECKING:
    import torch

    from ganscale.data.dataset import Dataset

IN_DOMAIN = "in-domain"


def train_classifier_of(
    data: DataConfig, *, out: Path | None = None, seed: int = 0, say: Callable[[str], None] | None = None
) -> tuple[InDomainCNN, Dataset]:
    """Return the classifier of ``data``, trained on its train part and measured on its held-out part, and the data.

    What was trained before with the same recipe is read from the cache. ``out`` is a new directory to save it in as
    well. Raises UserError for points of the plane, and where ``out`` exists.
    """
    if out is not None and out.exists():
        raise UserError("--out", "not exist yet", str(out), "choose another directory")
    dataset = open_dataset(data, split="train")
    if dataset.kind != "image":
        raise UserError("--data", "hold images for a classifier", data.path, "for example fashion-mnist-10k")

    def read() -> TrainingSet:
        held = open_dataset(data, split="held-out")
        return TrainingSet(*dataset.read(np.arange(len(dataset))), *held.read(np.arange(len(held))))

    with one_thread():
        network = in_domain_classifier(dataset.fingerprint, read, seed=seed, say=say)
    if network.objective == "classes":
        network.labels = dataset.class_names
    if out is not None:
        save_classifier(network, out, fingerprint=dataset.fingerprint)
    return network, dataset


def accuracy_by_class(network: InDomainCNN, data: DataConfig) -> dict[str, float]:
    """Return class name -> share of its held-out images classified right; empty where there are no classes."""
    if network.objective != "classes":
        return {}
    held = open_dataset(data, split="held-out")
    images, labels = held.read(np.arange(len(held)))
    with one_thread():
        found = _predicted(network, images)
    shares = {}
    for index, name in enumerate(held.class_names):
        rows = labels == index
        if rows.any():
            shares[name] = float((found[rows] == index).float().mean())
    return shares


def find_classifier(asked: Any, data: DataConfig, **choices: Any) -> ClassifierSource:
    """Return the source of the classifier ``asked`` for.

    ``asked`` is "in-domain" (of ``data``), the name of a data set (one trained on that, at the size of ``data``),
    "efficientnet-lite0", a path, "package.module:function", or a network or function. ``choices`` (``value_range``,
    ``size``, ``output``) replace what it says of itself. Raises the UserError family, with the near names.
    """
    choices = {key: value for key, value in choices.items() if value is not None}
    if not isinstance(asked, (str, Path)):
        return replace(source_of_object(asked), **choices)
    text = str(asked)
    if text == IN_DOMAIN or text in DATASETS:
        path = data.path if text == IN_DOMAIN else text
        network, dataset = train_classifier_of(data.model_copy(update={"path": path}))
        labels = dataset.class_names if network.objective == "classes" else ()
        source = source_of_network(network, name=f"in-domain CNN of {dataset.name}", labels=labels)
    elif text == LITE0:
        source = source_of_lite0()
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text) and not Path(text).exists():
        source = ClassifierSource(kind="function", name=text, payload=text)
    elif Path(text).exists() or "/" in text or Path(text).suffix:
        source = source_of_path(Path(text))
    else:
        known = (IN_DOMAIN, LITE0, *DATASETS)
        remedy = f"{nearest(text, known)} Or give a file, or package.module:function"
        raise UserError("--classifier", "be a known name, a file or package.module:function", text, remedy)
    return replace(source, **choices)


def _predicted(network: InDomainCNN, images: torch.Tensor) -> torch.Tensor:
    import torch

    from ganscale.data import to_float

    with torch.inference_mode():
        return torch.cat([network.logits(to_float(part)).argmax(1) for part in images.split(500)])
