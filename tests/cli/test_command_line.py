"""The form of the command line: one line for an error, JSON alone on stdout, exit codes, nothing written."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from calls import FORM, call

from ganscale.cli import main
from ganscale.cli.group import explain
from ganscale.cli.output import plain, show_table, table
from ganscale.cli.progress import Counting
from ganscale.errors import Interrupted, RunFailed, UserError

USAGE_MISTAKES = {
    "unknown verb": (("lanch",), "launch"),
    "unknown option": (("list", "--jsn", "presets"), "--json"),
    "unknown option before the verb": (("--versoin",), "--version"),
    "missing argument": (("generate",), "RUN"),
    "missing required option": (("explain", "runs/x"), "--method"),
    "missing value": (("generate", "x", "--num"), "--num"),
    "value for a flag": (("list", "presets", "--json=yes"), "--json"),
    "extra argument": (("list", "presets", "losses"), "losses"),
    "options of no method": (("list", "options"), "METHOD", "kernel-shap"),
    "options of an unknown method": (("list", "options", "line"), "lime"),
    "kind of list": (("list", "preset"), "presets"),
    "not a number": (("generate", "x", "--num", "many"), "--num", "many"),
    "number too small": (("generate", "x", "--num", "0"), "--num", "at least 1"),
    "seed below zero": (("generate", "x", "--seed", "-1"), "--seed"),
    "port out of range": (("dashboard", "x", "--port", "70000"), "--port", "65535"),
    "missing run": (("report", "no-such-run"), "no-such-run", "config.json"),
    "dashboard without events": (("dashboard", "no-such-folder"), "no-such-folder"),
}


@pytest.mark.parametrize("case", USAGE_MISTAKES.values(), ids=USAGE_MISTAKES.keys())
def test_a_mistake_is_one_line_with_exit_code_2_and_writes_nothing(case, tmp_path, monkeypatch, expect_refused):
    monkeypatch.chdir(tmp_path)
    arguments, *words = case
    expect_refused(call(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_debug_adds_the_traceback_and_keeps_the_line():
    done = call("report", "no-such-run", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert FORM.match(done.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x", "be y", "z", "do w"), 2),
        (RunFailed("worker 1 was lost"), 1),
        (Interrupted("stopped"), 130),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device", "runs/demo"), 1),
        (PermissionError(13, "Permission denied", "/root"), 2),
        (ZeroDivisionError("division by zero"), 1),
    ],
)
def test_the_kind_of_error_decides_the_exit_code(error, code):
    assert explain(error)[0] == code


def test_an_unforeseen_error_names_its_kind_and_the_way_to_its_traceback():
    code, message = explain(KeyError("generator"))
    assert code == 1
    assert "KeyError" in message
    assert "--debug" in message


def test_no_verb_prints_the_help():
    done = call()
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: ganscale")


def test_version():
    import ganscale

    assert call("--version").stdout.strip() == f"ganscale {ganscale.__version__}"


def test_help_of_every_verb_shows_and_its_summary_is_not_cut():
    overview = call("--help").stdout
    assert "..." not in overview.replace("[ARGS]...", "")
    for name in main.commands:
        assert name in overview
        done = call(name, "--help")
        assert done.exit_code == 0
        assert "--debug" in done.stdout


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m ganscale list presets | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_plain_makes_strict_json_of_what_a_result_holds():
    import numpy as np

    value = {"path": Path("a/b"), "mean": np.float32(0.5), "nan": float("nan"), "values": np.arange(2), 3: (1, None)}
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == {"path": "a/b", "mean": 0.5, "nan": None, "values": [0, 1], "3": [1, None]}


def test_a_table_is_aligned():
    assert table([("a", "x"), ("bbb", "y")]) == "a    x\nbbb  y"


def test_a_long_last_column_is_folded_below_itself_where_there_is_room():
    words = "one two three four five six seven eight"
    rows = [("a", words), ("bbb", "")]
    assert table(rows, columns=30) == "a    one two three four five\n     six seven eight\nbbb"
    assert table(rows, columns=20) == f"a    {words}\nbbb"  # too narrow to fold


def test_a_taken_port_is_refused_and_a_free_one_named(tmp_path, expect_refused):
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        expect_refused(call("dashboard", str(tmp_path), "--port", str(port)), str(port), "--port")


class Terminal(io.StringIO):
    """A stream that says that a person looks at it."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


def test_on_a_terminal_a_table_folds_to_its_width(monkeypatch):
    monkeypatch.setattr("ganscale.cli.output.shutil.get_terminal_size", lambda: os.terminal_size((30, 24)))
    monkeypatch.setattr("sys.stdout", Terminal())
    words = "one two three four five six seven eight"
    assert table([("a", words)]) == "a  one two three four five six\n   seven eight"


@pytest.mark.parametrize(("stream", "ruled"), [(Terminal, True), (io.StringIO, False)])
def test_a_table_of_results_is_ruled_on_a_terminal_alone_and_shows_brackets_as_they_are(monkeypatch, stream, ruled):
    monkeypatch.setattr("sys.stdout", stream())
    show_table([("name", "value"), ("a", "[b]")], title="All of them", styles=["green"])
    shown = sys.stdout.getvalue()
    assert "[b]" in shown
    assert ("All of them" in shown) == ("│" in shown) == ruled


def test_on_a_terminal_the_count_is_a_bar_that_goes_when_all_is_done(monkeypatch):
    shown_on = Terminal()
    monkeypatch.setattr("sys.stderr", shown_on)
    with Counting() as shown:
        for done in range(1, 4):
            shown(done, 4, "sweeps")
        (task,) = shown._bar.tasks
        assert (task.completed, task.total) == (3, 4)
        assert task.description.startswith("3 of 4 sweeps, about ")
        assert shown._bar.live.is_started
    assert not shown._bar.live.is_started


def test_the_time_left_is_counted_from_the_first_result_and_the_bar_says_starting_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ganscale.cli.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr", Terminal())
    with Counting() as shown:
        (task,) = shown._bar.tasks
        assert task.description == "starting"
        now[0] = 30.0  # imports, Ray, data
        shown(1, 11, "samples")
        assert task.description == "1 of 11 samples"
        now[0] = 31.0
        shown(2, 11, "samples")
        assert task.description == "2 of 11 samples, about 9 s left"
        now[0] = 91.0
        shown(1, 5, "sweeps")  # a count of something else has its own clock
        now[0] = 93.0
        shown(2, 5, "sweeps")
        assert task.description == "2 of 5 sweeps, about 6 s left"


def test_a_long_count_is_said_now_and_then_and_never_at_once(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("ganscale.cli.progress.time.monotonic", lambda: now[0])
    with Counting() as shown:
        for done in range(1, 41):
            now[0] += 1.0
            shown(done, 40, "samples")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{done} of 40 samples, about {40 - done} s left" for done in (10, 20, 30)]
