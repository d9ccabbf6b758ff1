"""Reads a run directory, whole or half-finished, into plain facts for the report. Never changes it, never guesses.

What is absent stays empty; what is there but cannot be read becomes a sentence in ``problems``.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganscale.errors import GanscaleError, UserError
from ganscale.progress import images_of

if TYPE_CHECKING:
    from ganscale.explain.types import Explanation


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a run directory holds. Lists are oldest first."""

    path: Path
    page: dict[str, Any]  # config.json: config, versions, command, created, placement, resumed
    ticks: list[dict[str, Any]]  # lines of metrics.jsonl
    samples: list[tuple[int, Path]]  # images seen, PNG
    evaluations: list[dict[str, Any]]
    explanations: list[tuple[str, Explanation]]  # directory name, result
    checkpoints: list[dict[str, Any]]  # manifests, with "name"
    quarantine: dict[str, Any] | None
    problems: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain nested data."""
        return self.page["config"]

    @property
    def images(self) -> int:
        """How many images the critic has been shown, by the newest line, grid or checkpoint."""
        seen = [tick["images"] for tick in self.ticks] + [images for images, _ in self.samples]
        return max([*seen, *(manifest["images"] for manifest in self.checkpoints)], default=0)

    @property
    def name_for_commands(self) -> str:
        """How a command names this run: by its name below ``runs/``, by its path elsewhere."""
        return shlex.quote(self.path.name if self.path.parent.name == "runs" else str(self.path))


def read_run(run_dir: str | Path) -> RunFacts:
    """Read everything that is there; raises UserError where ``run_dir`` is no run directory."""
    path = Path(run_dir)
    problems: list[str] = []
    page = _read_json(path / "config.json", problems)
    if page is None or not isinstance(page.get("config"), dict):
        raise UserError("run", "be a run directory with a readable config.json", str(path), "name one below runs/")
    return RunFacts(
        path=path,
        page=page,
        ticks=_read_ticks(path / "metrics.jsonl", problems),
        samples=_find_samples(path / "samples"),
        evaluations=_read_all(sorted((path / "evaluations").glob("*.json")), problems, need=("images", "values")),
        explanations=_load_explanations(path / "explanations", problems),
        checkpoints=_read_manifests(path / "checkpoints", problems),
        quarantine=_read_json(path / "quarantine.json", problems) if (path / "quarantine.json").exists() else None,
        problems=problems,
    )


def _images_of(name: str) -> int | None:
    try:
        return images_of(name)
    except ValueError:
        return None


def _read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return None
    if not isinstance(found, dict):
        problems.append(f"{path.name} holds no JSON object")
        return None
    return found


def _read_all(paths: list[Path], problems: list[str], *, need: tuple[str, ...]) -> list[dict[str, Any]]:
    pages = []
    for path in paths:
        page = _read_json(path, problems)
        if page is not None and all(key in page for key in need):
            pages.append({**page, "file": path.name})
        elif page is not None:
            problems.append(f"{path.name} lacks {' or '.join(need)}")
    return sorted(pages, key=lambda page: page["images"])


def _read_ticks(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    ticks, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            tick = json.loads(line)
            ticks.append({"images": int(tick["images"]), "scalars": tick["scalars"], "timing": tick.get("timing", {})})
        except (ValueError, KeyError, TypeError):
            broken += 1
    if broken:
        problems.append(f"{broken} line{'s' if broken > 1 else ''} of metrics.jsonl cannot be read and are left out")
    return ticks


def _find_samples(folder: Path) -> list[tuple[int, Path]]:
    found = [(_images_of(path.stem), path) for path in folder.glob("kimg-*.png")]
    return sorted((images, path) for images, path in found if images is not None)


def _load_explanations(folder: Path, problems: list[str]) -> list[tuple[str, Explanation]]:
    directories = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    if not directories:
        return []
    from ganscale.explain.types import Explanation

    loaded = []
    for directory in directories:
        try:
            loaded.append((directory.name, Explanation.load(directory)))
        except GanscaleError as error:
            problems.append(str(error))
    return loaded


def _read_manifests(folder: Path, problems: list[str]) -> list[dict[str, Any]]:
    directories = sorted(path for path in folder.glob("kimg-*") if path.is_dir())
    manifests = []
    for directory in directories:
        page = _read_json(directory / "manifest.json", [])
        if page is None or "files" not in page or "images" not in page:
            problems.append(f"checkpoint {directory.name} has no readable manifest")
        else:
            manifests.append({**page, "name": directory.name})
    return manifests
