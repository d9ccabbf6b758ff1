"""Which failures end a run: a table over exceptions, without Ray."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from ganscale.errors import DataError, NonFiniteError, RunFailed
from ganscale.runtime.failures import MAX_FAILURES_IN_A_ROW, describe, reason_to_stop, signature

pytestmark = pytest.mark.distributed


class WorkerHealthCheckFailedError(Exception):
    """Named as Ray's: the judge goes by name, so that it needs no Ray."""


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


LOST = WorkerHealthCheckFailedError("actor died")
PEER = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
OURS = DataError("data.path", "be a folder", "/nowhere", "look again")


@pytest.mark.parametrize(
    "failures",
    [{0: LOST}, {1: LOST, 0: PEER}, {0: PEER}, {0: ConnectionResetError("x")}, {0: RuntimeError("odd")}],
    ids=["lost", "lost and its peer", "peer alone", "connection", "unknown"],
)
def test_a_lost_process_and_the_unknown_are_retried(failures):
    assert reason_to_stop(failures, 1) is None


def test_the_lost_one_is_named_and_not_who_saw_it_go():
    seen = ConnectionError("rank 1 has died, says rank 0")
    assert reason_to_stop({0: seen}, 1) is None
    assert describe({0: seen, 1: LOST}) == "worker 1 was lost (WorkerHealthCheckFailedError: actor died)"
    assert describe({0: seen}) == "worker 1 was lost (ConnectionError: rank 1 has died, says rank 0)"
    of_the_teller = ConnectionError("rank 0 has died, says rank 2")
    assert describe({0: seen, 2: of_the_teller}).startswith("worker 1 was lost (")
    assert describe({0: seen, 2: ConnectionResetError("reset")}).startswith("worker 1 was lost (")
    late = ConnectionError("rank 1 must come to a sum within 20 s, says rank 0")
    assert describe({0: late}).startswith("worker 1 was lost (")
    also = ConnectionError("rank 1 has died, says rank 2")
    assert describe({0: seen, 2: also}) == "worker 1 was lost (ConnectionError: rank 1 has died, says rank 0)"
    assert describe({0: ConnectionResetError("x")}) == "worker 0 was lost (ConnectionResetError: x)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("bad\nshape"), "worker 1 stopped with ValueError: bad"),
        (KeyError("x"), "KeyError"),
        (ImportError("no module"), "ImportError: no module"),
        (FileNotFoundError(2, "gone", "a.png"), "a.png"),
        (OutOfMemoryError("CUDA out of memory"), "worker 1 ran out of memory; lower train.batch"),
        (MemoryError(), "ran out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "no space left on the disk of /x/y"),
    ],
)
def test_what_would_repeat_itself_ends_the_run_at_once_in_one_line(error, words):
    stop = reason_to_stop({1: error, 0: PEER}, 1)
    assert type(stop) is RunFailed
    assert words in str(stop)
    assert "\n" not in str(stop)


@pytest.mark.parametrize("error", [OURS, NonFiniteError("a gradient is NaN")])
def test_our_own_errors_come_back_as_they_were_whatever_the_other_ranks_say(error):
    assert reason_to_stop({0: LOST, 1: ValueError("x"), 2: error}, 1) is error


def test_the_same_unknown_failure_twice_ends_the_run_and_another_one_does_not():
    odd = {0: RuntimeError("odd")}
    assert isinstance(reason_to_stop(odd, 2, signature(odd)), RunFailed)
    assert reason_to_stop({0: RuntimeError("other")}, 2, signature(odd)) is None


def test_losses_without_progress_end_the_run_after_five():
    assert reason_to_stop({0: LOST}, MAX_FAILURES_IN_A_ROW - 1, signature({0: LOST})) is None
    assert "5 times" in str(reason_to_stop({0: LOST}, MAX_FAILURES_IN_A_ROW))


def test_any_number_of_losses_is_survived_while_checkpoints_come_and_five_without_one_are_not():
    from ganscale.runtime.gate import FailureGate
    from ganscale.runtime.train import FAILURES_BACKSTOP

    gate = FailureGate("a launch without Ray")  # so nothing is known of what the workers did
    for number in range(60):
        gate.after_report(None, [{"images": number, "checkpoint": f"kimg-{number:06d}"}], None)
        gate.after_exception(None, {0: LOST})
    for _ in range(MAX_FAILURES_IN_A_ROW - 2):
        gate.after_report(None, [{"images": 59, "checkpoint": "kimg-000059"}], None)  # a tick once more
        gate.after_exception(None, {0: LOST})
    with pytest.raises(RunFailed, match="5 times without a new checkpoint, last: worker 0 was lost"):
        gate.after_exception(None, {0: LOST})
    assert FAILURES_BACKSTOP > 1000  # Ray's own counter never goes back


class Entries(dict):
    """What is on the board of a launch, whose ranks have said something last."""

    def beats(self):
        return [SimpleNamespace(attempt=attempt, images=images) for attempt, images in self.get("said", [])]

    def put(self, key, value):
        self[key] = value


@pytest.fixture
def board(monkeypatch):
    from ganscale.runtime import gate

    entries = Entries()
    monkeypatch.setattr(gate, "Board", lambda name: entries)
    return entries


def gate_after_a_hang(board, where):
    """Return a gate that has judged the hang of worker 1 of two, in their first start."""
    from ganscale.runtime.gate import FailureGate

    gate = FailureGate("x")
    board["said"] = [("first", 640), ("first", 608)]
    board["hang"] = {"attempt": "first", "ranks": {"1": "worker 1 hung"}, "where": where}
    gate.after_exception(None, {1: LOST})
    assert (board["loss"]["why"], board["loss"]["images"]) == ("worker 1 hung", 640)
    return gate


@pytest.mark.parametrize("where", ["phase critic", None], ids=["hung", "fell silent"])
def test_a_group_that_fails_before_its_first_word_is_judged_by_what_it_raised_and_not_by_an_older_hang(board, where):
    gate = gate_after_a_hang(board, where)
    gate.after_exception(None, {0: PEER})
    assert board["loss"]["why"].startswith("RuntimeError: ")
    assert (board["loss"]["images"], board["loss"]["attempts"]) == (0, [])  # it had trained nothing
    with pytest.raises(DataError) as caught:
        gate.after_exception(None, {0: OURS})
    assert caught.value is OURS


def test_a_word_of_a_worker_that_a_smaller_group_has_not_replaced_is_neither_its_hang_nor_its_images(board):
    gate = gate_after_a_hang(board, "phase critic")
    board["said"] = [("second", 320), ("first", 608)]
    gate.after_exception(None, {0: LOST})
    assert board["loss"]["why"].startswith("worker 0 was lost")
    assert (board["loss"]["images"], board["loss"]["attempts"]) == (320, ["second"])
    board["hang"] = {"attempt": "third", "ranks": {"0": "worker 0 hung"}, "where": "start"}
    board["said"] = [("third", 0), ("first", 608)]
    gate.after_exception(None, {0: LOST})
    assert board["loss"]["why"] == "worker 0 hung"
