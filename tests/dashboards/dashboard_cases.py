"""Networks that can be read by eye, and run directories at any stage: what the dashboards' tests draw from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ganscale.config import override
from ganscale.data.pixels import save_png
from ganscale.explain import Explanation, Subject, Target, explain
from ganscale.presets import preset

NASTY = "<script>alert('x')</script>&\"quoted\""
SIDE = 12


class Corner(nn.Module):
    """A critic that sums the upper left quarter: its map is known."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N]"""
        return x[:, :, : SIDE // 2, : SIDE // 2].sum(dim=(1, 2, 3))


class Stripes(nn.Module):
    """A generator with one linear layer, whose directions are its singular vectors."""

    latent = 6

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(self.latent, SIDE * SIDE)
        with torch.no_grad():  # a few strong directions beside weak ones
            self.project.weight.mul_(torch.tensor([1.0, 0.8, 0.6, 0.02, 0.02, 0.02]))

    def forward(self, z: Tensor) -> Tensor:
        """[N, D] -> [N, 1, H, W]"""
        return torch.tanh(self.project(z)).reshape(-1, 1, SIDE, SIDE)


class Quarters(nn.Module):
    """An autoencoder whose code is the brightness of the four quarters."""

    latent = 4

    def encode(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 4]"""
        return nn.functional.adaptive_avg_pool2d(x.mean(dim=1, keepdim=True), 2).flatten(1)

    def forward(self, z: Tensor) -> Tensor:
        """[N, 4] -> [N, 3, H, W]"""
        return nn.functional.interpolate(z.reshape(-1, 1, 2, 2), size=SIDE).repeat(1, 3, 1, 1)


def red_codes(count: int = 60) -> Explanation:
    """Codes of red pictures of three classes, the class being the quarter that is black."""
    labels = torch.arange(count) % 3
    x = torch.full((count, 3, SIDE, SIDE), -1.0)
    x[:, 0] = 1.0
    for image, label in zip(x, labels.tolist(), strict=True):
        row, column = (SIDE // 2 * place for place in divmod(label, 2))
        image[0, row : row + SIDE // 2, column : column + SIDE // 2] = -1.0
    x = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))).clamp(-1, 1)
    subject = Subject(name="quarters", fn=lambda x: x.flatten(1).sum(1), generator=Quarters())
    return explain(subject, {"x": x, "labels": labels}, "autoencoder")


def critic_subject() -> Subject:
    """The corner critic and the stripe generator as a run's pair."""
    torch.manual_seed(0)
    critic, generator = Corner(), Stripes()
    return Subject(
        name="critic", fn=critic, module=critic, generator=generator, critic=critic, target=Target(kind="critic")
    )


def image_inputs(count: int = 4) -> dict[str, Tensor]:
    """Samples by turns real and generated, with a class for the real ones."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, SIDE, SIDE, generator=generator) * 1.8 - 0.9
    generated = torch.arange(count) % 2 == 1
    return {"x": x, "generated": generated, "labels": torch.where(generated, -1, 7)}


def evaluation_values() -> dict[str, dict]:
    """Two values as an evaluation's file holds them."""
    stamp = {"extractor": "in-domain CNN", "split": "held-out", "n_fake": "500", "resizer": "bilinear to 28x28"}
    fd = {"name": "FD (in-domain CNN)", "value": 12.5, "spread": None, "floor": 1.25, "better": "lower", "stamp": stamp}
    kd = {"name": "KD (in-domain CNN)", "value": 0.5, "spread": 0.02, "floor": -0.001, "better": "lower"}
    return {fd["name"]: fd, kd["name"]: {**kd, "stamp": stamp}}


def make_bare(root: Path) -> Path:
    """Create ``root/runs/fresh`` with nothing but config.json."""
    path = root / "runs" / "fresh"
    path.mkdir(parents=True)
    config = override(preset("dcgan-fashion"), {"train.kimg": 8, "data.path": f"/data/{NASTY}"})
    page = {
        "config": config.model_dump(mode="json"),
        "versions": {"ganscale": "0.0", "torch": "2.13"},
        "command": ["ganscale", "launch", "--data", NASTY],
        "created": "2030-01-01T00:00:00+00:00",
        "placement": {"workers": 2, "device": "cpu"},
        "resumed": [],
    }
    (path / "config.json").write_text(json.dumps(page))
    return path


def make_whole(root: Path, explanations: dict[str, Explanation]) -> Path:
    """Create ``root/runs/fresh`` with everything."""
    run = make_bare(root)
    _write_ticks(run)
    for kimg, level in ((0, 0), (4, 100), (8, 200)):
        save_png(run / "samples" / f"kimg-{kimg:06d}.png", np.full((30, 30), level, dtype=np.uint8))
    checkpoint = run / "checkpoints" / "kimg-000008"
    checkpoint.mkdir(parents=True)
    files = {"ema.safetensors": {"bytes": 10, "sha256": "ab" * 32}}
    (checkpoint / "manifest.json").write_text(json.dumps({"schema": 1, "images": 8000, "files": files}))
    untrained = {name: {**entry, "value": entry["value"] * 4} for name, entry in evaluation_values().items()}
    page = {"images": 8000, "values": evaluation_values(), "untrained": untrained}
    (run / "evaluations").mkdir()
    (run / "evaluations" / "kimg-000008.json").write_text(json.dumps(page))
    for name, explanation in explanations.items():
        explanation.save(run / "explanations" / name)
    aside = {
        "dataset": "mine",
        "fingerprint": "f00",
        "files": 9,
        "quarantined": [{"path": NASTY, "reason": "truncated"}],
    }
    (run / "quarantine.json").write_text(json.dumps(aside))
    return run


def _write_ticks(run_dir: Path) -> None:
    lines = []
    for images in range(1000, 8001, 1000):
        scalars = {"loss/critic": 1.4, "loss/generator": 0.7 + images / 1e5, "logits/real": 0.3, "logits/fake": -0.3}
        line = {"images": images, "scalars": scalars, "timing": {"kimg_per_s": 0.5, "tick_s": 2.0, "elapsed_s": 2.0}}
        lines.append(json.dumps({**line, "kimg": images / 1000, "partial": False}))
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
