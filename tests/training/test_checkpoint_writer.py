"""Laws of the writer in the background: one at a time, named when whole, errors told, the best kept."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import get_args

import pytest
import torch

from ganscale.config import CheckpointConfig, RunConfig, ScoreName, override
from ganscale.errors import ConfigError
from ganscale.metrics import Reference
from ganscale.progress import checkpoint_name
from ganscale.training import checkpoint as cp
from ganscale.training import checkpoint_writer
from ganscale.training.checkpoint_writer import CheckpointWriter
from ganscale.training.retention import best_checkpoint, score_name

pytestmark = pytest.mark.distributed
NETS = ("generator", "critic", "ema")


class Gated(dict):
    """Parts that cannot be written before ``gate`` is open: a disk as slow as a test wants it."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__({net: {"w": torch.ones(3)} for net in NETS})
        self.gate = gate

    def items(self):
        self.gate.wait()
        return super().items()


def parts() -> Gated:
    gate = threading.Event()
    gate.set()
    return Gated(gate)


def save(writer: CheckpointWriter, images: int) -> None:
    writer.make_room(images)
    writer.write(images, parts(), {})


def evaluate(run_dir: Path, images: int, fd: float | None, **stamp: str) -> None:
    path = run_dir / "evaluations" / f"{checkpoint_name(images)}.json"
    path.parent.mkdir(exist_ok=True)
    recall = {"value": images / 1e5, "better": "higher", "stamp": {"n": "1", **stamp}}
    values = {
        "FD (in-domain CNN)": {"value": fd, "better": "lower", "stamp": {"n": "1", **stamp}},
        "recall (x)": recall,
    }
    path.write_text(json.dumps({"values": values}))


def kept(run_dir: Path) -> list[str]:
    return [path.name for path in cp.names(run_dir / "checkpoints")]


def test_training_goes_on_before_the_checkpoint_is_whole_and_nothing_names_it_until_then(tmp_path: Path):
    gate = threading.Event()
    with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        writer.make_room(1000)
        writer.write(1000, Gated(gate), {"note": "x"})
        assert writer.newest is None
        assert kept(tmp_path) == []
        gate.set()
    assert writer.newest == tmp_path / "checkpoints" / "kimg-000001"
    assert cp.load(writer.newest).meta["note"] == "x"


def test_the_next_save_waits_for_the_one_under_way_and_says_so(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_writer, "WORTH_SAYING_S", 0.0)
    gate = threading.Event()
    with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        writer.write(1000, Gated(gate), {})
        opener = threading.Timer(0.05, gate.set)
        opener.start()
        writer.make_room(2000)
        assert gate.is_set()
        assert writer.newest.name == "kimg-000001"
        writer.write(2000, parts(), {})
    assert "at 2 kimg until the checkpoint before was on the disk; raise checkpoint.every_kimg" in caplog.text
    assert kept(tmp_path) == ["kimg-000001", "kimg-000002"]


def shared_storage() -> dict:
    one = torch.ones(4)
    return {net: {"a": one, "b": one[:2]} for net in NETS}  # which safetensors refuses


def test_what_went_wrong_in_the_background_is_raised_at_the_next_question_once(tmp_path: Path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    writer.write(1000, shared_storage(), {})
    writer.settle()
    with pytest.raises(RuntimeError, match="share memory"):
        writer.check()
    writer.check()
    assert writer.newest is None
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_error_of_the_last_checkpoint_is_raised_at_the_end(tmp_path: Path):
    with pytest.raises(RuntimeError, match="share memory"), CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        writer.write(1000, shared_storage(), {})


def test_the_error_that_ended_the_run_is_not_hidden_by_that_of_the_checkpoint_under_way(tmp_path: Path, caplog):
    def run() -> None:
        with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
            writer.write(1000, shared_storage(), {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert "the checkpoint under way failed too" in caplog.text


def test_the_newest_and_the_best_evaluated_are_kept(tmp_path: Path):
    with CheckpointWriter(tmp_path, CheckpointConfig(keep=2, keep_best="fd")) as writer:
        for images, fd in ((1000, 9.0), (2000, 3.0), (3000, 5.0), (4000, 4.0), (5000, 7.0)):
            save(writer, images)
            writer.settle()
            evaluate(tmp_path, images, fd)
    assert kept(tmp_path) == ["kimg-000002", "kimg-000004", "kimg-000005"]


@pytest.mark.parametrize(
    ("score", "name"), [("fd", "kimg-000002"), ("recall", "kimg-000003"), ("kd", None), (None, None)]
)
def test_the_best_is_that_of_the_chosen_score_in_the_direction_that_is_better(tmp_path: Path, score, name):
    for images, fd in ((1000, 9.0), (2000, 3.0), (3000, 5.0)):
        cp.commit(tmp_path / "checkpoints", images, parts(), {})
        evaluate(tmp_path, images, fd)
    assert best_checkpoint(tmp_path, score) == name


def test_values_measured_in_another_way_do_not_compare(tmp_path: Path):
    for images, fd, n in ((1000, 1.0, "100"), (2000, 6.0, "5000"), (3000, 7.0, "5000")):
        cp.commit(tmp_path / "checkpoints", images, parts(), {})
        evaluate(tmp_path, images, fd, n=n)
    assert best_checkpoint(tmp_path, "fd") == "kimg-000002"


def test_an_evaluation_that_is_damaged_or_not_finite_counts_for_nothing(tmp_path: Path):
    for images, fd in ((1000, 5.0), (2000, 1.0), (3000, None)):
        cp.commit(tmp_path / "checkpoints", images, parts(), {})
        evaluate(tmp_path, images, fd)
    (tmp_path / "evaluations" / "kimg-000002.json").write_text("{")
    assert best_checkpoint(tmp_path, "fd") == "kimg-000001"


def test_nothing_is_deleted_before_a_newer_one_is_whole(tmp_path: Path):
    """The run may have been resumed from the old one, and would be again."""
    writer = CheckpointWriter(tmp_path, CheckpointConfig(keep=1))
    save(writer, 1000)
    writer.make_room(2000)
    writer.write(2000, shared_storage(), {})
    writer.settle()
    assert kept(tmp_path) == ["kimg-000001"]
    with pytest.raises(RuntimeError, match="share memory"):
        writer.check()
    save(writer, 3000)
    writer.settle()
    assert kept(tmp_path) == ["kimg-000003"]


def test_every_score_that_may_be_chosen_is_one_that_evaluations_write():
    class Pixels:
        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

        def describe(self) -> dict[str, str]:
            return {"extractor": "in-domain CNN"}

    images = torch.randint(256, (120, 1, 1, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    written = Reference(Pixels(), images[:40], images[40:80]).measure(images[80:])
    of_points = {"modes-hit", "within-4-sigma"}  # written by runtime/evaluation.py for the gaussians
    assert {score_name(label) for label in written} | of_points == set(get_args(ScoreName))


def test_an_unknown_score_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_best must be one of .*did you mean recall"):
        override(RunConfig(), {"checkpoint.keep_best": "recal"})
    assert override(RunConfig(), ["checkpoint.keep_best=none"]).checkpoint.keep_best is None
