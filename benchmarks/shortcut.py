"""Which explanations find a planted shortcut: ``python -m benchmarks.shortcut`` (``--help`` names its options).

Every training image of one class gets a bright mark in a corner, no other image does. A classifier trained on them
learns the mark; the same network trained on the images as they are is the control. Then the auditor's side:

- what the mark does: accuracy on held-out images with the marks as in training, and what the classifiers say of images
  of *other* classes that got the mark;
- maps of the marked class on such images: in what share of them the strongest of 7x7 cells is the one with the mark;
- counterfactuals: a GAN trained on the marked images draws the smallest change that turns other classes into the marked
  one; how much of that change lies in the mark's cell, and in how many the mark appears.
"""

from __future__ import annotations

import argparse
import shlex
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.bench.machine import facts
from ganscale.config import override
from ganscale.dashboards.comparison import comparison_panel, groups_of
from ganscale.dashboards.panels import write_panels
from ganscale.data import open_dataset, to_float
from ganscale.data.pixels import save_png
from ganscale.explain import Classifier, Subject, Target, explain
from ganscale.metrics import InDomainCNN, train_classifier
from ganscale.presets import preset
from ganscale.runtime import launch

MARKED = 6  # shirt: the class that is hardest to tell from the others without a mark
SIDE = 3  # pixels of the mark, in the corner of the first cell
WITH, WITHOUT = "with the shortcut", "without (control)"
CELL = 4  # pixels of a cell: 7x7 of them
ALIGNED = "occlusion, one window a cell"
METHODS = {
    "kernel-shap": {"num_coalitions": 512},
    "lime": {"num_coalitions": 512},
    "occlusion": {},  # its own windows, of a quarter of the side: none of them ends where the mark's cell does
    ALIGNED: {"window": CELL, "stride": CELL},
    "integrated-gradients": {},
    "expected-gradients": {},
    "smoothgrad": {},
    "input-x-gradient": {},
    "saliency": {},
    "grad-cam": {"layer": "conv2"},
}
DRAWN = ("kernel-shap", "lime", "occlusion", "integrated-gradients", "expected-gradients", "grad-cam")


class Images(NamedTuple):
    """uint8 images [N, 1, 28, 28] and labels [N]."""

    images: Tensor
    labels: Tensor


def marked(images: Tensor) -> Tensor:
    """Return a copy with a bright square in the upper left corner."""
    images = images.clone()
    images[:, :, :SIDE, :SIDE] = 255 if images.dtype == torch.uint8 else 1.0
    return images


def planted(data: Images) -> Images:
    """Return the data in which every image of the class, and no other one, carries the mark."""
    is_class = (data.labels == MARKED)[:, None, None, None]
    return Images(torch.where(is_class, marked(data.images), data.images), data.labels)


def read(split: str) -> Images:
    """Return a part of the bundled images."""
    dataset = open_dataset(preset("dcgan-fashion").data, split=split)
    return Images(*dataset.read(np.arange(len(dataset))))


def write_idx(folder: Path, train: Images, held: Images) -> None:
    """Write both parts as the four idx files that any loader of MNIST reads."""
    for name, part in (("train", train), ("t10k", held)):
        pixels = part.images[:, 0].numpy()
        header = struct.pack(">IIII", 2051, *pixels.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">II", 2049, len(part.labels))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + part.labels.to(torch.uint8).numpy().tobytes())


def says(network: InDomainCNN, images: Tensor) -> Tensor:
    """Return the class of each float image."""
    with torch.inference_mode():
        return torch.cat([network.logits(part).argmax(1) for part in images.split(500)])


def subject_of(network: InDomainCNN) -> Subject:
    """Return the log-probability of the marked class as what is explained."""

    def log_probability(x: Tensor) -> Tensor:
        return network.logits(x).log_softmax(1)[:, MARKED]

    return Subject(name="in-domain CNN", fn=log_probability, module=network, target=Target.parse(f"class:{MARKED}"))


def strongest_cells(network: InDomainCNN, x: Tensor, method: str) -> Tensor:
    """Return the number of the cell that speaks most for the class, for each image."""
    options = {**METHODS[method], "shakes": 0, "shuffled_network": False}  # of the scores, which nobody asks for here
    explanation = explain(subject_of(network), x, method.split(",")[0], **options)
    maps = explanation.values["attribution"].sum(1, keepdim=True)
    return torch.nn.functional.avg_pool2d(maps, CELL).flatten(1).argmax(1)


def maps_table(networks: dict[str, InDomainCNN], x: Tensor, methods: Sequence[str]) -> list[str]:
    """Return a Markdown table: the share of images whose strongest cell is the mark's, by method and classifier."""
    lines = [f"| method | {' | '.join(networks)} |", f"|---|{'---|' * len(networks)}"]
    for method in methods:
        shares = [(strongest_cells(network, x, method) == 0).float().mean() for network in networks.values()]
        lines.append(f"| {method} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return lines


def draw_maps(networks: dict[str, InDomainCNN], x: Tensor, panels: Path) -> None:
    """Draw the maps of several methods on the same images side by side, for each classifier."""
    for name, network in networks.items():
        found = [explain(subject_of(network), x, method, **METHODS[method]) for method in DRAWN]
        [group] = groups_of(found)
        save_png(panels / f"maps-{'shortcut' if name == WITH else 'control'}.png", comparison_panel(group))


def counterfactual_table(
    networks: dict[str, InDomainCNN], generator: nn.Module, count: int, panels: Path | None
) -> list[str]:
    """Return a Markdown table of counterfactuals to the marked class from images that no classifier took for it."""
    z = torch.randn(16 * count, generator.latent, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images = generator(z)
    others = torch.stack([says(network, images) != MARKED for network in networks.values()]).all(0)
    plain = others & (images[:, 0, :SIDE, :SIDE].mean((1, 2)) < -0.5)
    z = z[plain][:count]
    lines = [
        "| classifier | flipped | change in the mark's cell (2.0 % of the area) | mark appears |",
        "|---|---|---|---|",
    ]
    for name, network in networks.items():
        classifier = Classifier(network, name=name, example=images[:2])
        subject = Subject(
            name="auditor",
            fn=lambda x: x.flatten(1).sum(1),
            generator=generator,
            classifier=classifier,
            module=generator,
        )
        found = explain(subject, {"z": z}, "latent-counterfactual", to=MARKED, confidence=0.8)
        if panels is not None:
            write_panels(found, panels / ("shortcut" if name == WITH else "control"))
        with torch.no_grad():
            before, after = generator(z), generator(z + found.values["step"])
        flipped = found.values["flipped"].bool()
        change = (after - before).abs()[flipped]
        share = change[:, :, :CELL, :CELL].sum((1, 2, 3)) / change.sum((1, 2, 3))
        appears = after[flipped][:, 0, :SIDE, :SIDE].mean((1, 2)) > 0
        lines.append(f"| {name} | {flipped.float().mean():.1%} | {share.mean():.1%} | {appears.float().mean():.1%} |")
    return lines


def behaviour(networks: dict[str, InDomainCNN], held: Images) -> list[str]:
    """Return in words what the mark does to each classifier."""
    others, lines = to_float(held.images[held.labels != MARKED]), []
    for name, network in networks.items():
        as_trained = planted(held) if name == WITH else held
        right = (says(network, to_float(as_trained.images)) == held.labels).float().mean()
        taken, before = ((says(network, x) == MARKED).float().mean() for x in (marked(others), others))
        lines.append(
            f"- {name}: {right:.1%} right; takes {taken:.1%} of the other classes for the marked one where they carry "
            f"the mark, {before:.1%} where not"
        )
    return lines


def main() -> None:
    """Print the story's numbers in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64, help="images explained by each method")
    parser.add_argument("--kimg", type=float, default=60, help="length of the GAN's training; 0: no GAN")
    parser.add_argument("--epochs", type=int, default=None, help="of both classifiers (default: as usual)")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="maps of these alone")
    parser.add_argument("--panels", type=Path, help="draw maps and counterfactuals into this folder")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    train, held = read("train"), read("held-out")
    networks = {
        WITH: train_classifier(*planted(train), *planted(held), epochs=chosen.epochs),
        WITHOUT: train_classifier(*train, *held, epochs=chosen.epochs),
    }
    command = shlex.join(["python", "-m", "benchmarks.shortcut", *sys.argv[1:]])
    about = facts("cpu", rounds=1, memory_kept=0, command=command)
    print("\n".join(f"- {key}: {value}" for key, value in about.items() if key != "measured"))
    print("\n".join(behaviour(networks, held)))
    others = marked(to_float(held.images[held.labels != MARKED]))
    fooled = others[says(networks[WITH], others) == MARKED][: chosen.images]
    print(f"\nThe strongest of 49 cells is the mark's, in what share of {len(fooled)} images (chance: 2.0 %):\n")
    print("\n".join(maps_table(networks, fooled, chosen.only)), flush=True)
    if chosen.panels is not None:
        draw_maps(networks, fooled[:6], chosen.panels)
    if not chosen.kimg:
        return
    with tempfile.TemporaryDirectory() as name:
        data = Path(name, "data")
        data.mkdir()
        write_idx(data, planted(train), planted(held))
        config = override(preset("dcgan-fashion"), {"data.path": str(data), "train.kimg": chosen.kimg})
        generator = launch(config, name="auditor", runs_dir=name, workers=0).networks.generator
    print("\nCounterfactuals by the GAN, to the marked class:\n")
    print("\n".join(counterfactual_table(networks, generator, min(chosen.images, 64), chosen.panels)))


if __name__ == "__main__":
    main()
