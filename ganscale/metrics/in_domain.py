"""A small convolutional network trained on the data itself: the extractor that needs no downloaded weights.

Two convolutions and two linear layers on 28x28 pixels. With labels it learns the classes; without labels it learns
which of four quarter turns an image was given (Gidaris et al. 2018, arXiv:1803.07728), and says so in its stamp. It is
no judge of natural photographs and its distances are comparable only among measurements with the same weights, which is
why the hash of the weights and the held-out accuracy travel with every value.

N batch, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganscale.errors import DataError, UserError
from ganscale.metrics.features import features_of, images_to_float

SIDE = 28  # pixels a side inside the network; images of other sizes are resized, antialiased
FEATURES = 128
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
WARM_UP = 0.2  # share of the training in which the learning rate rises
IMAGES_SHOWN = 36_000  # the default length: four epochs of 9,000 images, whatever the size of the data
MOST_EPOCHS = 30
TURNS = 4

Objective = Literal["classes", "turns"]


class TrainingSet(NamedTuple):
    """Images uint8 ``[N, C, H, W]`` and labels int64 ``[N]`` (-1 = none) to learn from, and others to be judged on."""

    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor


class InDomainCNN(nn.Module):
    """The classifier; ``features`` are the 128 activations before its last layer.

    Attributes: ``held_out_accuracy`` (share of held-out images classified right), ``objective`` ("classes" or
    "turns"), ``recipe`` (how it was trained), ``labels`` (the classes' names, where known) and ``sha256`` (of the
    weights). Takes float images in [-1, 1] of any size and of the ``channels`` it was made for.
    """

    def __init__(self, channels: int, classes: int, *, objective: Objective = "classes") -> None:
        super().__init__()
        self.channels, self.classes, self.objective = channels, classes, objective
        self.held_out_accuracy = float("nan")
        self.recipe: dict[str, str] = {}
        self.labels: tuple[str, ...] = ()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * (SIDE // 4) ** 2, FEATURES)
        self.classifier = nn.Linear(FEATURES, classes)
        self.register_buffer("feature_rms", torch.ones(()))

    def features(self, images: Tensor) -> Tensor:
        """Feature rows ``[N, 128]`` of float images ``[N, C, H, W]`` in [-1, 1]; raises ``UserError`` for other C.

        Scaled to a root mean square of 1 on the held-out images, so that distances do not grow with the weights.
        """
        return self._hidden(images) / self.feature_rms

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[N, K]`` of float images ``[N, C, H, W]`` in [-1, 1], differentiable in the images."""
        return self.classifier(self._hidden(images))

    def forward(self, images: Tensor) -> Tensor:
        """The same as ``logits``."""
        return self.logits(images)

    def _hidden(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != self.channels:
            got = str(list(images.shape))
            remedy = "measure images like those it was trained on"
            raise UserError("images for the in-domain CNN", f"be [N, {self.channels}, H, W]", got, remedy)
        x = _resized(images)
        # Pooling before the rectifier gives the same numbers as after it, on a quarter of the values.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return F.relu(self.hidden(x.flatten(1)))

    @property
    def sha256(self) -> str:
        """Hash of the weights in their safetensors form."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The weights as the bytes of a safetensors file."""
        return safetensors.torch.save({name: value.cpu().contiguous() for name, value in self.state_dict().items()})

    def describe(self) -> dict[str, str]:
        """What every value measured through this network says about it."""
        return {
            "extractor": "in-domain CNN",
            "extractor_sha256": self.sha256,
            "objective": self.objective,
            "held_out_accuracy": f"{self.held_out_accuracy:.4f}",
            "resizer": f"antialiased bilinear to {SIDE}x{SIDE}",
            "value_range": "[-1, 1]",
            "feature_scale": "root mean square 1 on held-out images",
        }


def train_classifier(
    images: Tensor,
    labels: Tensor,
    held_images: Tensor,
    held_labels: Tensor,
    *,
    seed: int = 0,
    epochs: int | None = None,
    threads: int = 1,
) -> InDomainCNN:
    """Train an ``InDomainCNN`` on the CPU and measure it on the held-out images.

    ``images`` and ``held_images`` are uint8 ``[N, C, H, W]``, the labels int64 ``[N]`` with -1 for none. Where fewer
    than two classes are labelled the network learns quarter turns instead; otherwise unlabelled images are left out.
    By default as many epochs as show about 36,000 images, at most 30. One thread by default: the weights, and with
    them the stamp, then do not depend on the number of cores, and a busy machine does not slow it down out of
    proportion. The caller's random state and thread count are left as they were. Raises ``UserError`` for wrong
    shapes or dtypes and ``DataError`` where a part has no usable image.
    """
    data, objective = _checked(TrainingSet(images, labels, held_images, held_labels))
    classes = TURNS if objective == "turns" else int(torch.cat([data.labels, data.held_labels]).max()) + 1
    epochs = max(1, min(MOST_EPOCHS, round(IMAGES_SHOWN / len(data.images)))) if epochs is None else epochs
    for name, amount in (("epochs", epochs), ("threads", threads)):
        if amount < 1:
            raise UserError(name, "be at least 1", amount, "leave it out for the usual value")
    with _threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = InDomainCNN(data.images.shape[1], classes, objective=objective)
        network.to(memory_format=torch.channels_last)  # a third less CPU time than contiguous, same accuracy
        _fit(network, data, epochs)
        network.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        network.held_out_accuracy = accuracy(network, data.held_images, data.held_labels)
        network.feature_rms.fill_(features_of(network, data.held_images).square().mean().sqrt().clamp_min(1e-12))
    network.recipe = {
        **recipe(seed),
        "epochs": str(epochs),
        "images": str(len(data.images)),
        "held_out_images": str(len(data.held_images)),
    }
    return network


def recipe(seed: int) -> dict[str, str]:
    """What decides the weights apart from the data; part of the cache's key."""
    return {
        "architecture": f"conv 32, conv 64, linear {FEATURES}, linear; {SIDE}x{SIDE}",
        "optimiser": f"AdamW, weight decay {WEIGHT_DECAY:g}, batch {BATCH}",
        "learning_rate": f"rises to {LEARNING_RATE:g} over {WARM_UP:.0%}, then falls by half a cosine",
        "length": f"{IMAGES_SHOWN} images, at most {MOST_EPOCHS} epochs",
        "seed": str(seed),
    }


@torch.inference_mode()
def accuracy(network: InDomainCNN, images: Tensor, labels: Tensor, *, batch: int = 500) -> float:
    """Share of uint8 images ``[N, C, H, W]`` whose label the network finds; for turns, over all four turns of each."""
    hits = total = 0
    for image_part, label_part in zip(images.split(batch), labels.split(batch), strict=True):
        x = images_to_float(image_part)
        if network.objective == "turns":
            x = _resized(x)
            label_part = torch.arange(TURNS).repeat_interleave(len(x))
            x = torch.cat([x.rot90(turn, (2, 3)) for turn in range(TURNS)])
        hits += int((network.logits(x).argmax(1) == label_part).sum())
        total += len(x)
    return hits / total


def _fit(network: InDomainCNN, data: TrainingSet, epochs: int) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(data.images) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rise_and_fall(step, steps))
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data.images)).split(BATCH):
            # Resized once here, since a turned image must be square before it is turned.
            x, label_N = _resized(images_to_float(data.images[rows])), data.labels[rows]
            if network.objective == "turns":
                label_N = torch.randint(TURNS, (len(x),))
                x = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(x, label_N, strict=True)])
            loss = F.cross_entropy(network(x.contiguous(memory_format=torch.channels_last)), label_N)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def _rise_and_fall(step: int, steps: int) -> float:
    """Share of the learning rate at ``step``: a linear rise over the first fifth, then half a cosine down to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up + 1) / (steps - warm_up + 1))


def _resized(x_NCHW: Tensor) -> Tensor:
    if x_NCHW.shape[2:] == (SIDE, SIDE):
        return x_NCHW
    return F.interpolate(x_NCHW, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def _checked(data: TrainingSet) -> tuple[TrainingSet, Objective]:
    for part, images, labels in (
        ("training", data.images, data.labels),
        ("held-out", data.held_images, data.held_labels),
    ):
        if images.dtype != torch.uint8 or images.ndim != 4:
            got = f"{images.dtype} {list(images.shape)}"
            raise UserError(f"{part} images", "be uint8 [N, C, H, W]", got, "convert them first")
        if len(images) == 0:
            remedy = "give the in-domain CNN data with a training and a held-out part"
            raise DataError(f"{part} images", "hold at least one image", "none", remedy)
        if labels.shape != (len(images),):
            raise UserError(f"{part} labels", f"be [{len(images)}]", str(list(labels.shape)), "give one label an image")
    if data.images.shape[1] != data.held_images.shape[1]:
        got = f"{data.images.shape[1]} and {data.held_images.shape[1]}"
        raise UserError("training and held-out images", "have equally many channels", got, "read both by one rule")
    if len(data.labels[data.labels >= 0].unique()) < 2 or not (data.held_labels >= 0).any():
        return data, "turns"
    kept, held_kept = data.labels >= 0, data.held_labels >= 0
    return (
        TrainingSet(data.images[kept], data.labels[kept], data.held_images[held_kept], data.held_labels[held_kept]),
        "classes",
    )


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
