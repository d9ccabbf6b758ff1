"""What the benchmark of faults says of a run whose faults are written down by hand."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from benchmarks import faults
from benchmarks.faults import BATCH, SAVE, TICK, Outcome, Strike


def write_start(run_dir: Path, number: int, ticks: list[tuple[float, int]]) -> None:
    """Write the event file of one start, with ticks at (wall clock, images), and what is no tick."""
    writer = EventFileWriter(str(run_dir / "tensorboard"), filename_suffix=f".{number}")
    for tag, more in (("speed/tick_s", 0), ("loss/critic", 1000)):
        for at, images in ticks:
            value = Summary.Value(tag=tag, simple_value=1.0)
            writer.add_event(Event(wall_time=at, step=images + more, summary=Summary(value=[value])))
    writer.close()


def write_restart(run_dir: Path, at: float, went_on: int, lost: int, seconds: float) -> None:
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat()
    page = {"at": moment, "why": "", "images_lost": lost, "went_on_from": went_on, "seconds": seconds}
    with (run_dir / faults.RESTARTS).open("a") as stream:
        stream.write(json.dumps(page) + "\n")


@pytest.mark.parametrize(
    ("lost", "repeated"),
    [(48, 48), (0, 0), (TICK + BATCH, TICK + BATCH)],  # as the workers said: ticks know no part of one
)
def test_images_since_the_last_tick_count_as_repeated_too(tmp_path, lost, repeated):
    ticked = SAVE + lost // TICK * TICK
    write_start(tmp_path, 1, [(10.0 + images, images) for images in range(TICK, ticked + 1, TICK)])
    write_restart(tmp_path, 1000.0, SAVE, lost, 3.0)
    write_start(tmp_path, 2, [(2000.0, SAVE + TICK), (2001.0, SAVE + 2 * TICK)])
    found = faults.of_workers(tmp_path, [Strike(999.0, SAVE)])
    assert (found.repeated, found.recovery_s, found.wrong) == ([repeated], [4.0], [])


def test_a_tick_that_the_workers_could_not_tell_of_counts(tmp_path):
    write_start(tmp_path, 1, [(10.0, SAVE), (11.0, SAVE + TICK)])
    write_restart(tmp_path, 1000.0, SAVE, 0, 3.0)
    assert faults.of_workers(tmp_path, [Strike(999.0, SAVE)]).repeated == [TICK]


@pytest.mark.parametrize(
    ("saved", "went_on", "repeated", "words"),
    [
        (SAVE, SAVE, 2 * SAVE, []),
        (2 * SAVE, SAVE, SAVE, [f"went on from {SAVE} images though {2 * SAVE} were saved"]),
        (SAVE, SAVE, 2 * SAVE + BATCH, [f"{2 * SAVE + BATCH} images were repeated"]),
    ],
)
def test_what_was_lost_or_repeated_too_much_is_wrong(saved, went_on, repeated, words):
    found = Outcome()
    found.add(Strike(0.0, saved), 1.0, repeated, went_on)
    assert found.wrong == words
    assert faults.row("x", found).endswith("| yes |" if not words else f"| no: {words[0]} |")
