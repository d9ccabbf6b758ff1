"""Who hangs: a table over signs of life, without Ray; and a heartbeat that says where its thread is."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ganscale.runtime.failures import MAX_FAILURES_IN_A_ROW, RankHung, describe, reason_to_stop, signature
from ganscale.runtime.heartbeat import Beat, beating
from ganscale.runtime.leaving import ASKED, DRAINS, STAYS, who_leaves
from ganscale.runtime.watch import RESTARTS, Seen, Watch, find_hang
from ganscale.training.whereabouts import Whereabouts

pytestmark = pytest.mark.distributed
TIMEOUT_S, NOW = 10.0, 1000.0
PATIENCE_S = 30.0


def seen(rank: int, *, moved: float, heard: float = 0.5, size: int = 2, **changes: Any) -> Seen:
    """Return a rank that did something ``moved`` s ago and said something ``heard`` s ago."""
    facts = {"attempt": "a", "rank": rank, "size": size, "pid": 100 + rank, "started": "1", "machine": "m", "host": "h"}
    said = {"node": "n", "beats": 7, "marks": 20, "doing": "phase critic", "images": 640, "place": "", "waits": False}
    beat = Beat(**(facts | said | {"begun_at": 0, "trained_since": 1.0} | changes))
    return Seen(beat, NOW - heard, NOW - moved)


def find(*ranks: Seen):
    return find_hang({one.beat.rank: one for one in ranks}, NOW, TIMEOUT_S)


@pytest.mark.parametrize(
    "ranks",
    [
        [],
        [seen(0, moved=9.9), seen(1, moved=9.9)],
        [seen(0, moved=60), seen(1, moved=1)],
        [seen(0, moved=60, heard=60), seen(1, moved=60, left=True)],
        [seen(0, moved=99), seen(1, moved=99, begun_at=None)],
    ],
    ids=["nobody yet", "a long step", "others still move", "one has left: Ray ends the rest", "data are being read"],
)
def test_a_group_that_moves_or_ends_is_left_alone(ranks):
    assert find(*ranks) is None


@pytest.mark.parametrize(
    ("ranks", "guilty", "words"),
    [
        ([seen(0, moved=11, marks=21), seen(1, moved=12, heard=11)], [1], "gave no sign of life for 11 s"),
        ([seen(0, moved=11, marks=21, waits=True), seen(1, moved=12)], [1], "made no progress for 11 s"),
        ([seen(0, moved=11), seen(1, moved=12, marks=21)], [0], "made no progress"),
        ([seen(0, moved=11, waits=True), seen(1, moved=11, place="a.py:3 f")], [1], "in phase critic (a.py:3 f) at"),
        ([seen(0, moved=11, waits=True), seen(1, moved=11, waits=True)], [0, 1], "made no progress"),
        ([seen(0, moved=11, size=1)], [0], "made no progress"),
        ([seen(0, moved=11)], [1], "has not begun 11 s after the others"),
        ([seen(0, moved=101, begun_at=None, marks=1), seen(1, moved=101)], [0], "made no progress for 101 s"),
    ],
    ids=[
        "silent",
        "behind",
        "rank 0 behind",
        "by the stack",
        "cannot be told",
        "alone",
        "never came",
        "no end of reading",
    ],
)
def test_who_hangs_is_named_with_phase_and_process(ranks, guilty, words):
    hang = find(*ranks)
    assert sorted(hang.ranks) == guilty
    assert all(f"worker {rank} " in text and words in text for rank, text in hang.ranks.items())
    assert hang.victims


def test_only_the_guilty_are_ended():
    hang = find(seen(0, moved=11, marks=21), seen(1, moved=11))
    assert [beat.pid for beat in hang.victims] == [101]
    assert hang.where == "phase critic"


def test_a_worker_that_falls_silent_is_a_loss_and_may_be_one_again_at_the_same_place():
    hang = find(seen(0, moved=11), seen(1, moved=12, heard=11))
    assert hang.where is None
    silent = {1: RankHung(hang.ranks[1], hang.where)}
    for count in range(2, MAX_FAILURES_IN_A_ROW):
        assert reason_to_stop(silent, count, signature(silent)) is None
    assert "without a new checkpoint" in str(reason_to_stop(silent, MAX_FAILURES_IN_A_ROW, signature(silent)))


def test_a_hang_is_retried_once_and_the_same_one_again_ends_the_run_in_one_line():
    def hung(images: int, rank: int = 1, where: str = "phase critic") -> dict[int, Exception]:
        return {rank: RankHung(f"worker {rank} made no progress for 10 s in {where} at {images} images", where)}

    assert reason_to_stop(hung(64), 1) is None
    for other in (hung(64, rank=0), hung(64, where="reading images")):
        assert reason_to_stop(other, 2, signature(hung(64))) is None
    stop = str(reason_to_stop(hung(96), 2, signature(hung(64))))
    assert "twice in the same way: worker 1 made no progress for 10 s in phase critic at 96 images" in stop
    assert "\n" not in stop


class WorkerHealthCheckFailedError(Exception):
    """Named as Ray's."""


class WorkerLeaves(Exception):
    """Named as ours."""


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ({0: RuntimeError("odd"), 1: WorkerHealthCheckFailedError("gone")}, "worker 1 was lost ("),
        ({0: WorkerLeaves("worker 1 must go"), 1: WorkerLeaves("worker 1 must go")}, "worker 1 must go"),
        ({0: RuntimeError("closed"), 1: RankHung("worker 1 hung", "start")}, "worker 1 hung"),
        ({1: RuntimeError("odd\nmore")}, "RuntimeError: odd (worker 1)"),
    ],
)
def test_a_failure_is_described_by_its_cause_rather_than_by_what_others_saw_of_it(failures, words):
    assert describe(failures).startswith(words)
    assert "\n" not in describe(failures)


def test_who_leaves_is_said_with_the_reason_of_each():
    assert who_leaves([STAYS, ASKED, STAYS]) == "worker 1 was asked to end by SIGTERM"
    both = "worker 1 was asked to end by SIGTERM and worker 0, 2 must leave a node that is taken away"
    assert who_leaves([DRAINS, ASKED, DRAINS]) == both


class Told(dict):
    """A board that says what a test puts there."""

    def beats(self) -> list[Beat]:
        return self["beats"]

    def lose(self, number: int, attempts: list[str], images: int) -> None:
        """Add the note of the gate on a loss."""
        note = {"number": number, "why": f"loss {number}", "at": time.time(), "images": images}
        self["loss"] = note | {"attempts": attempts, "ends": False}


def test_what_a_loss_cost_is_told_also_where_the_first_start_after_it_failed(tmp_path: Path):
    before = seen(0, moved=0, size=1, images=640).beat
    board = Told(beats=[before])
    watch = Watch(board, tmp_path, hang_timeout_s=TIMEOUT_S)
    for number, attempts, images in ((1, ["a"], 640), (2, [], 0)):
        board.lose(number, attempts, images)
        board["loss"]["at"] = float(number)
        watch._look()
    assert not (tmp_path / RESTARTS).exists()
    board["beats"] = [dataclasses.replace(before, attempt="b", begun_at=512, trained_since=9.0)]
    watch._look()
    (told,) = map(json.loads, (tmp_path / RESTARTS).read_text().splitlines())
    assert (told["why"], told["images_lost"], told["went_on_from"]) == ("loss 2", 128, 512)
    assert (told["at"], told["seconds"]) == ("1970-01-01T00:00:01.000+00:00", 8.0)  # from the first loss on


def test_that_a_launch_has_trained_is_known_from_its_first_step_on_whatever_comes_later(tmp_path: Path):
    stepped = seen(0, moved=0, size=1).beat
    watch = Watch(board := Told(), tmp_path, hang_timeout_s=TIMEOUT_S)
    found = []
    for said in ([], [dataclasses.replace(stepped, trained_since=None)], [stepped], []):
        board["beats"] = said
        watch._look()
        found.append(watch.has_trained)
    assert found == [False, False, True, True]


class FakeBoard:
    """Keeps what is put."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def put(self, key: str, value: Any) -> None:
        self.entries.append(value | {"key": key})


def test_a_heartbeat_says_what_its_rank_does_while_that_stands_still_and_when_it_leaves():
    board, whereabouts = FakeBoard(), Whereabouts()
    whereabouts.begin(64)
    whereabouts.enter("phase critic", 96)
    facts = {"attempt": "a", "rank": 1, "size": 2, "pid": 1, "started": "1", "machine": "m", "host": "h", "node": "n"}
    with beating(board, whereabouts, facts, 0.01):
        deadline = time.monotonic() + PATIENCE_S
        while len(board.entries) < 5:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
    *during, last = board.entries
    assert {entry["key"] for entry in board.entries} == {"rank/1"}
    assert [entry["beats"] for entry in during] == list(range(1, len(during) + 1))
    assert {(entry["doing"], entry["images"], entry["begun_at"], entry["left"]) for entry in during} == {
        ("phase critic", 96, 64, False)
    }
    assert last["left"]


def test_the_beginning_and_the_first_step_are_told_at_once():
    board, whereabouts = FakeBoard(), Whereabouts()
    facts = {"attempt": "a", "rank": 0, "size": 1, "pid": 1, "started": "1", "machine": "m", "host": "h", "node": "n"}
    deadline = time.monotonic() + PATIENCE_S
    with beating(board, whereabouts, facts, 1000.0):
        whereabouts.begin(64)
        while not any(entry["begun_at"] == 64 for entry in board.entries):
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        whereabouts.has_stepped()
        while board.entries[-1]["trained_since"] is None:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
    assert board.entries[-1]["left"]


def test_the_stack_tells_who_waits_for_other_ranks(monkeypatch):
    from ganscale.training.process_group import Group

    whereabouts, release, inside = Whereabouts(), threading.Event(), threading.Event()

    def train() -> None:
        whereabouts.begin(0)
        Group.broadcast_object(_Rank(), 1)

    class _Rank:
        size, device = 2, None

    def blocked(*arguments: object, **options: object) -> None:
        inside.set()
        release.wait(PATIENCE_S)

    monkeypatch.setattr("torch.distributed.broadcast_object_list", blocked)
    thread = threading.Thread(target=train)
    thread.start()
    assert inside.wait(PATIENCE_S)
    place, waits = whereabouts.look()
    release.set()
    thread.join()
    assert waits
    assert place.startswith("training/process_group.py:")
    assert place.endswith(" broadcast_object")
    assert whereabouts.look() == ("", False)  # the thread has ended
