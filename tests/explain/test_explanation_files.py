"""Explanations on disk: bit-exact, strict, and refused by name where they are damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ganscale.explain import Explanation, Score, Target, next_directory
from ganscale.explain.errors import ExplanationFileError


def make(**changes) -> Explanation:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(1, 4, dtype=torch.bool).expand(3, 4)  # shares storage between its rows
    fields = {
        "method": "kernel-shap",
        "target": Target(kind="critic", sign="fake"),
        "values": {
            "attribution": torch.randn(3, 1, 5, 7, generator=generator),
            "segment_weights": torch.randn(3, 4, generator=generator, dtype=torch.float64),
            "turned": torch.arange(6.0).reshape(2, 3).T,
        },
        "inputs": {"x": torch.randn(3, 1, 5, 7, generator=generator), "mask": mask, "one": torch.tensor(3)},
        "scores": {
            "deletion_auc": Score(value=0.1, low=0.05, high=0.15, control=0.4, n=3, better="lower"),
            "odd": Score(value=math.nan, low=None, high=math.inf, control=-math.inf, n=3, better="zero"),
        },
        "meta": {"seed": 1, "primary": ["deletion_auc"], "warnings": []},
    }
    return Explanation(**{**fields, **changes})


def test_a_round_trip_is_bit_exact(tmp_path: Path):
    made = make()
    found = Explanation.load(made.save(tmp_path / "kernel-shap-001"))
    for group in ("values", "inputs"):
        assert getattr(found, group).keys() == getattr(made, group).keys()
        for name, tensor in getattr(made, group).items():
            other = getattr(found, group)[name]
            assert other.dtype == tensor.dtype
            assert torch.equal(other, tensor), name
    assert (found.method, found.target, found.meta) == (made.method, made.target, made.meta)
    assert found.scores["deletion_auc"] == made.scores["deletion_auc"]


def test_numbers_that_are_not_finite_are_null_with_a_reason_and_come_back(tmp_path: Path):
    directory = make().save(tmp_path / "kernel-shap-001")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    document = json.loads((directory / "explanation.json").read_text(), parse_constant=refuse)
    assert document["scores"]["odd"]["value"] is None
    assert document["scores"]["odd"]["reason"] == {"value": "nan", "high": "inf", "control": "-inf"}
    odd = Explanation.load(directory).scores["odd"]
    assert math.isnan(odd.value)
    assert (odd.low, odd.high, odd.control) == (None, math.inf, -math.inf)


def test_equal_explanations_are_equal_bytes(tmp_path: Path):
    one, two = (make().save(tmp_path / name) / "values.safetensors" for name in ("a-001", "b-001"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_tensors_are_refused_by_name(tmp_path: Path, damage: str):
    file = make().save(tmp_path / "kernel-shap-001") / "values.safetensors"
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[-3] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        file.write_bytes(raw[:-10])
    else:
        file.unlink()
    with pytest.raises(ExplanationFileError, match=r"values\.safetensors must (match the SHA-256|exist)"):
        Explanation.load(file.parent)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "tensors": {}}']
)
def test_a_damaged_or_unknown_document_is_refused_by_name(tmp_path: Path, text: str):
    directory = make().save(tmp_path / "kernel-shap-001")
    (directory / "explanation.json").write_text(text)
    with pytest.raises(ExplanationFileError, match=r"explanation\.json"):
        Explanation.load(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {}},
        {"scores": []},
        {"meta": []},
        {"meta": {"primary": ["none"]}},
        {"target": "critic"},
        {"scores": {"odd": {"value": "x", "low": None, "high": None, "control": 0.0, "n": 3, "better": "zero"}}},
        {"scores": {"odd": {**dict.fromkeys(("value", "low", "high", "control")), "reason": {"value": "no number"}}}},
    ],
)
def test_a_document_that_is_no_whole_explanation_is_refused_by_name(tmp_path: Path, change: dict):
    directory = make().save(tmp_path / "kernel-shap-001")
    document = json.loads((directory / "explanation.json").read_text())
    (directory / "explanation.json").write_text(json.dumps(document | change))
    with pytest.raises(ExplanationFileError, match=r"explanation\.json must describe a whole explanation"):
        Explanation.load(directory)


def test_a_missing_directory_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ExplanationFileError, match="nothing-001"):
        Explanation.load(tmp_path / "nothing-001")


def test_an_existing_directory_is_never_written_over(tmp_path: Path):
    directory = make().save(tmp_path / "kernel-shap-001")
    before = (directory / "explanation.json").read_bytes()
    with pytest.raises(ExplanationFileError, match="kernel-shap-001"):
        make(method="other").save(directory)
    assert (directory / "explanation.json").read_bytes() == before


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path: Path):
    def fail(directory: Path) -> None:
        assert (directory / "values.safetensors").is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make().save(tmp_path / "runs" / "kernel-shap-001", also_write=fail)
    assert list((tmp_path / "runs").iterdir()) == []


def test_pictures_become_visible_together_with_the_numbers(tmp_path: Path):
    target = tmp_path / "kernel-shap-001"

    def draw(directory: Path) -> None:
        assert not target.exists()
        (directory / "panel.png").write_bytes(b"picture")

    make().save(target, also_write=draw)
    assert sorted(file.name for file in target.iterdir()) == ["explanation.json", "panel.png", "values.safetensors"]


def test_numbers_of_directories_go_on_from_the_highest(tmp_path: Path):
    assert next_directory(tmp_path / "none", "directions").name == "directions-001"
    for name in ("directions-002", "directions-009", "directions-old", "kernel-shap-011", "other-directions-040"):
        (tmp_path / name).mkdir()
    assert next_directory(tmp_path, "directions").name == "directions-010"
    assert next_directory(tmp_path, "kernel-shap").name == "kernel-shap-012"


def test_an_explanation_without_a_score_cannot_be_made():
    with pytest.raises(AssertionError, match="at least one score"):
        make(scores={}, meta={})
