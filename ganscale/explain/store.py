"""Explanations on disk: one safetensors file, one strict JSON file, no pickle; written aside, hashed, renamed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ganscale.explain.errors import ExplanationFileError
from ganscale.explain.types import Explanation, Score, Target
from ganscale.files import full_disk, is_full_disk, new_directory, sha256_of

SCHEMA = 1
TENSORS = "values.safetensors"
DOCUMENT = "explanation.json"
_NUMBERS = ("value", "low", "high", "control")


def next_directory(root: Path, method: str) -> Path:
    """Return the first free ``root/METHOD-001``, ``-002``, ...; nothing is created."""
    root = Path(root)
    taken = [path.name.rpartition("-") for path in root.glob(f"{method}-*")] if root.is_dir() else []
    numbers = [int(number) for name, _, number in taken if name == method and number.isdigit()]
    return root / f"{method}-{max(numbers, default=0) + 1:03d}"


def save(explanation: Explanation, directory: Path, *, also_write: Callable[[Path], None] | None = None) -> Path:
    """Write ``explanation`` as the new ``directory``; see ``Explanation.save``."""
    directory = Path(directory)
    if directory.exists():
        raise ExplanationFileError(str(directory), "not exist yet", "a directory", "save under another name")
    try:
        with new_directory(directory) as aside:
            save_file(_flatten(explanation), aside / TENSORS)
            document = _to_document(explanation, sha256=sha256_of(aside / TENSORS))
            (aside / DOCUMENT).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            if also_write is not None:
                also_write(aside)
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise full_disk(directory.parent, "nothing half-written was kept; free some") from error
    return directory


def load(directory: Path) -> Explanation:
    """Read and verify a saved explanation; raises ExplanationFileError that names the damaged file."""
    directory = Path(directory)
    document_path, tensors_path = directory / DOCUMENT, directory / TENSORS
    remedy = "make the explanation again with ganscale explain"
    try:
        document = json.loads(document_path.read_text(encoding="utf-8"))
        schema = document["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExplanationFileError(str(document_path), "be readable JSON", type(error).__name__, remedy) from None
    if schema != SCHEMA:
        raise ExplanationFileError(
            str(document_path), f"have schema {SCHEMA}", schema, "use the ganscale that wrote it"
        )
    if not tensors_path.is_file():
        raise ExplanationFileError(str(tensors_path), "exist", "no such file", remedy)
    try:
        expected = document["tensors"]["sha256"]
        if sha256_of(tensors_path) != expected:
            raise ExplanationFileError(str(tensors_path), f"match the SHA-256 in {DOCUMENT}", "other content", remedy)
        tensors = load_file(tensors_path)
        return Explanation(
            method=document["method"],
            target=Target(**document["target"]),
            values=_group(tensors, "values"),
            inputs=_group(tensors, "inputs"),
            scores={name: _to_score(entry) for name, entry in document["scores"].items()},
            meta=document["meta"],
        )
    except ExplanationFileError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError, SafetensorError) as error:
        raise ExplanationFileError(str(document_path), "describe a whole explanation", repr(error), remedy) from None


def _flatten(explanation: Explanation) -> dict[str, Tensor]:
    # safetensors refuses tensors that share storage (expanded masks), so each gets storage of its own
    groups = {"values": explanation.values, "inputs": explanation.inputs}
    return {
        f"{group}/{name}": tensor.contiguous().clone() for group in groups for name, tensor in groups[group].items()
    }


def _group(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{group}/")}


def _to_document(explanation: Explanation, *, sha256: str) -> dict[str, Any]:
    target = {key: value for key, value in asdict(explanation.target).items() if value is not None}
    return {
        "schema": SCHEMA,
        "method": explanation.method,
        "target": target,
        "not_better_than_random": explanation.not_better_than_random,
        "verdict": explanation.verdict,
        "scores": {name: _from_score(score) for name, score in explanation.scores.items()},
        "meta": explanation.meta,
        "tensors": {"file": TENSORS, "sha256": sha256},
    }


def _from_score(score: Score) -> dict[str, Any]:
    """Return the JSON form of a score: a number that is not finite becomes null, and ``reason`` says what it was."""
    entry: dict[str, Any] = {name: getattr(score, name) for name in _NUMBERS}
    reason = {name: str(value) for name, value in entry.items() if value is not None and not math.isfinite(value)}
    entry.update(dict.fromkeys(reason), n=score.n, better=score.better, margin_of=score.margin_of)
    if score.constant is not None:
        entry["constant"] = score.constant
    return {**entry, "reason": reason} if reason else entry


def _to_score(entry: Mapping[str, Any]) -> Score:
    reason = entry.get("reason", {})
    given = {name: reason.get(name, entry[name]) for name in _NUMBERS}
    numbers = {name: None if value is None else float(value) for name, value in given.items()}
    margin_of, constant = entry.get("margin_of", "chance"), entry.get("constant")
    return Score(**numbers, n=entry["n"], better=entry["better"], margin_of=margin_of, constant=constant)
