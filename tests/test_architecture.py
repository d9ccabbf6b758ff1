"""The law of imports: who may import whom, read from the source, and what loads which heavy package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "ganscale"
LAYERS = {
    "config": 0, "errors": 0, "files": 0, "memory": 0, "presets": 0, "progress": 0,
    "ops": 1,
    "data": 2, "models": 2, "losses": 2, "metrics": 2,
    "training": 3, "explain": 3,
    "dashboards": 4,
    "bench": 5, "runtime": 5,
    "cli": 6,
}  # fmt: skip
FOUNDATION = {"config", "errors", "files", "memory", "presets", "progress"}
MAY_IMPORT = {
    "config": {"errors"},
    "errors": set(),
    "files": {"errors"},
    "memory": set(),
    "presets": FOUNDATION,
    "progress": set(),
    "ops": FOUNDATION,
    "data": FOUNDATION,
    "models": FOUNDATION | {"ops"},
    "losses": FOUNDATION | {"ops"},
    "metrics": FOUNDATION,
    "training": FOUNDATION | {"ops", "data", "models", "losses", "metrics"},
    "explain": FOUNDATION | {"ops", "data", "models", "losses", "metrics"},
    "dashboards": FOUNDATION | {"data", "models", "losses", "metrics", "training", "explain"},
    "runtime": FOUNDATION | {"ops", "data", "models", "losses", "metrics", "training", "explain", "dashboards"},
    "bench": FOUNDATION | {"ops", "data", "models", "losses", "metrics", "training"},
    "cli": FOUNDATION
    | {"ops", "data", "models", "losses", "metrics", "training", "explain", "dashboards", "runtime", "bench"},
}
RESULT_TYPES = {"ganscale.training.records", "ganscale.explain.types"}  # all that dashboards may know of layer 3
SOLE_IMPORTER = {"ray": "runtime", "tensorboard": "dashboards", "torch.utils.tensorboard": "dashboards"}


def _imports(path: Path) -> list[tuple[str, int, bool]]:
    """Return (module, line, at import time) for every import; ``if TYPE_CHECKING`` blocks load nothing."""
    tree = ast.parse(path.read_text())
    late = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    typing_only = {
        id(n)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for n in ast.walk(test)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        at_import = id(node) not in late
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, at_import) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            if node.module == "ganscale":
                found += [(f"ganscale.{alias.name}", node.lineno, at_import) for alias in node.names]
            else:
                found.append((node.module, node.lineno, at_import))
    return found


SOURCES = sorted(ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_package_has_a_layer():
    parts = {_part(path) for path in SOURCES} - {"__init__", "__main__"}
    assert parts <= LAYERS.keys()


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_point_downwards(path: Path):
    part = _part(path)
    if part in ("__init__", "__main__"):
        return
    for module, line, at_import in _imports(path):
        if not module.startswith("ganscale."):
            continue
        other = module.split(".")[1]
        if other not in LAYERS or other == part:  # the version, or its own package
            continue
        assert other in MAY_IMPORT[part], f"{path}:{line}: {part} may not import {other}"
        if part == "dashboards" and LAYERS[other] == 3:
            assert module in RESULT_TYPES, f"{path}:{line}: dashboards may only read result types, not {module}"
        if part == "cli" and at_import:
            assert other in FOUNDATION, f"{path}:{line}: a verb imports {other} inside its function"


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_heavy_packages_have_one_importer(path: Path):
    for module, line, _ in _imports(path):
        for package, owner in SOLE_IMPORTER.items():
            if module == package or module.startswith(package + "."):
                assert _part(path) == owner, f"{path}:{line}: only {owner} may import {package}"
        if module == "ganscale._C":
            assert path.name == "_extension.py", f"{path}:{line}: only ops/_extension.py may import the compiled module"


def test_the_algorithm_fits_in_one_short_file():
    assert len((ROOT / "training" / "step.py").read_text().splitlines()) < 150
