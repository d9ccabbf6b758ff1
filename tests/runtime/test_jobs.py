"""Jobs on a real cluster of one node: sent, followed, stopped, refused; and what a cut connection does to a log."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ray_head import RayHead, ray_head
from tiny_runs import SETTINGS, tiny_config

from ganscale.cli import main
from ganscale.explain import EXPLAINERS
from ganscale.runtime import jobs, launch, load
from ganscale.runtime.jobs_logs import follow
from ganscale.runtime.jobs_package import collect
from ganscale.runtime.jobs_server import JobServer
from ganscale.runtime.processes import processes_below

pytestmark = pytest.mark.ray
TINY = [word for key, value in SETTINGS.items() if key != "train.kimg" for word in ("--set", f"{key}={value}")]
WAIT_S = 120  # only where all else fails


@pytest.fixture(scope="module")
def head(short_dir) -> Iterator[RayHead]:
    with ray_head(short_dir) as running:
        yield running
    assert processes_below(short_dir) == set()


@pytest.fixture(autouse=True)
def as_a_user_of(head, monkeypatch, tmp_path):
    """Stand in an empty project, with the token of the cluster."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_path))
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_job(head: RayHead, *words: str, root: Path) -> str:
    """Send any command as a job, with the files of ``root``; returns its id."""
    job_id = jobs.new_job_id("test")
    jobs.submit(head.server, words, collect(root), job_id=job_id, run="test")
    return job_id


def ended(head: RayHead, job_id: str) -> list[str]:
    """Wait for the end of a job; returns its log."""
    return list(follow(head.server, job_id))


def only_line(done: Result) -> str:
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_a_submitted_launch_trains_where_it_was_asked_to_and_its_end_is_ours(head, tmp_path):
    done = call("submit", "--name", "x", "--kimg", 0.256, *TINY, "--wait")
    assert done.exit_code == 0, done.output
    (job_id,) = done.stdout.split()
    assert "0.256 of 0.256 kimg" in done.stderr
    assert load(tmp_path / "runs" / "x").checkpoint().images == 256

    log = call("logs", job_id).stdout
    assert "Traceback" not in log
    assert call("logs", "-f", job_id).stdout == log
    assert [json.loads(line)["line"] for line in call("logs", "-f", "--json", job_id).stdout.splitlines()] == (
        json.loads(call("logs", "--json", job_id).stdout)["lines"]
    )

    facts = json.loads(call("status", job_id, "--json").stdout)
    assert (facts["job"], facts["status"], facts["run"], facts["exit_code"]) == (job_id, "SUCCEEDED", "x", 0)
    assert facts["started"] < facts["ended"]
    assert job_id in [job["job"] for job in json.loads(call("list-jobs", "--json").stdout)]
    cluster = json.loads(call("status", "--json").stdout)
    assert (cluster["nodes"], cluster["cpus"], cluster["gpus"], cluster["jobs_running"]) == (1, 2, 0, 0)


def test_stop_leaves_a_checkpoint_of_the_last_tick_and_says_how_to_go_on(head, tmp_path):
    settings = [*TINY, "--set", "checkpoint.every_kimg=90000"]
    job_id = call("submit", "--name", "x", "--kimg", 100_000, *settings).stdout.strip()
    watched = []
    for line in follow(head.server, job_id):
        watched.append(line)
        if " of 100000 kimg" in line:
            break
    done = call("stop", job_id)
    assert done.exit_code == 0, done.output
    run_dir = tmp_path / "runs" / "x"
    assert f"go on with ganscale launch --resume {run_dir}" in done.stdout
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["images"]
    assert load(run_dir).checkpoint().images == last
    assert not (run_dir / ".ray").exists()
    assert json.loads(call("status", job_id, "--json").stdout)["status"] == "STOPPED"
    assert call("logs", "-f", job_id).exit_code == 130
    resumed = json.loads(call("submit", "--resume", "x", "--kimg", 200_000, "--dry-run", "--json").stdout)
    asked = main.commands["launch"].make_context("launch", resumed["command"][2:]).params
    assert (asked["resume"], asked["kimg"], asked["name"]) == (str(run_dir), 200_000, None)
    again = call("stop", job_id)
    assert (again.exit_code, "had ended already" in again.stdout) == (0, True)


def test_a_launch_that_is_refused_over_there_ends_with_2_and_its_own_line(head, tmp_path):
    done = call("submit", "--data", "/no/such/folder", "--wait", "--name", "x")
    assert done.exit_code == 2
    assert "error: data.path must be an existing folder or zip, got /no/such/folder" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_every_end_of_a_job_is_one_of_our_exit_codes(head, tmp_path):
    codes = {"exit 3": 1, "exit 130": 130, "kill -9 $$": 1}
    ids = {script: run_job(head, "bash", "-c", script, root=tmp_path) for script in codes}  # all at once
    for script, code in codes.items():
        done = call("logs", "-f", ids[script])
        assert done.exit_code == code
        assert ids[script] in done.stderr.splitlines()[-1]


def test_a_job_finds_the_files_that_it_took_along(head, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "note.txt").write_text("taken along\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_text("not taken along\n")
    job_id = run_job(head, "bash", "-c", "cat sub/note.txt; ls data", root=tmp_path)
    log = ended(head, job_id)
    assert "taken along" in log
    assert any("cannot access 'data'" in line for line in log)


class CuttingProxy:
    """Passes bytes on to a server, but cuts each of the first ``cuts`` long answers after ``after`` bytes."""

    def __init__(self, port: int, *, cuts: int, after: int) -> None:
        self.target, self.left, self.after, self.lock = port, cuts, after, threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> CuttingProxy:
        self._begin(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(5)

    def _begin(self, work, *arguments: object) -> None:
        self.threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self.threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._begin(self._pass, client, server, False)
                self._begin(self._pass, server, client, True)

    def _pass(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(997):
                sink.sendall(piece)
                passed += len(piece)
                with self.lock:
                    cut = is_answer and self.left > 0 and passed > self.after
                    self.left -= cut
                if cut:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_is_cut_again_and_again_loses_no_line_and_repeats_none(head, tmp_path):
    count = 4000
    script = f"import time\nfor n in range({count}):\n    print('line', n, 'ümläut'); n % 1000 or time.sleep(0.3)"
    job_id = run_job(head, sys.executable, "-c", script, root=tmp_path)
    with CuttingProxy(int(head.url.rpartition(":")[2]), cuts=4, after=20_000) as proxy:
        server = JobServer(proxy.url, head.token_path.read_text())
        lines = list(follow(server, job_id))
        assert proxy.left == 0  # all cuts were made
    assert [line for line in lines if line.startswith("line")] == [f"line {n} ümläut" for n in range(count)]
    assert "\n".join(lines) == head.server.logs(job_id).rstrip("\n")


def test_who_stops_following_is_free_at_once_while_the_job_prints_on(head, tmp_path):
    job_id = run_job(
        head, sys.executable, "-uc", "import time\nwhile True: print('more'); time.sleep(0.1)", root=tmp_path
    )
    lines = follow(head.server, job_id)
    assert "more" in lines
    began = time.monotonic()
    lines.close()
    assert time.monotonic() - began < 60  # and not when the job ends, which it does not

    command = [sys.executable, "-m", "ganscale", "logs", "-f", job_id]
    ways = f"ganscale logs -f {job_id}, or ganscale stop {job_id}"
    for count in range(1, 4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
            printed = (line for line in watcher.stdout if line == "more\n")
            assert len(list(itertools.islice(printed, count))) == count
            watcher.send_signal(signal.SIGINT)
            _, error = watcher.communicate(timeout=WAIT_S)
        assert watcher.returncode == 130
        assert error == f"interrupted: no longer watching {job_id}, which goes on: {ways}\n"
    assert head.server.job(job_id).status == "RUNNING"
    assert call("stop", job_id).exit_code == 0
    assert call("logs", "-f", job_id).exit_code == 130


def test_no_token_and_a_wrong_one_are_told_apart_in_one_line(head, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    done = call("list-jobs")
    assert done.exit_code == 2
    assert only_line(done).startswith("error: the Ray token must be in ")

    done = call("list-jobs", "--insecure")
    assert done.exit_code == 2
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: no token: whoever reaches ")
    assert error.startswith(f"error: the Ray token must be sent to {head.url}, got none; ")

    (tmp_path / "token").write_text("0" * 64)
    done = call("list-jobs")
    assert done.exit_code == 2
    assert only_line(done).startswith(f"error: the Ray token must be that of the cluster at {head.url}, got another")
    assert "0000" not in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpus", 3), ("--gpus must be at most 0, got 3", "no GPUs and 2 CPU cores")),
        (("--workers", 9, "--set", "train.batch=9"), ("--workers must be at most 2", "got 9")),
        (("--cpus", 64), ("--cpus must be 1 to 2", "got 64")),
        (("--workers", 2, "--set", "train.batch=33"), ("train.batch must be divisible by the 2 workers",)),
        (("--preset", "dcgan-fashoin"), ("did you mean dcgan-fashion",)),
        (("--data", "faces"), ("--data must be a built-in set, an absolute path",)),
        (("--working-dir", "nothing"), ("--working-dir must be a directory",)),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_sent(head, tmp_path, arguments, words):
    before = {job.id for job in head.server.jobs()}
    done = call("submit", *arguments)
    assert done.exit_code == 2
    line = only_line(done)
    assert all(word in line for word in words), line
    assert {job.id for job in head.server.jobs()} == before


def test_too_large_a_folder_is_refused_before_anything_is_sent(head, tmp_path):
    with (tmp_path / "big.bin").open("wb") as stream:
        stream.truncate(120 << 20)
    before = {job.id for job in head.server.jobs()}
    done = call("submit")
    assert done.exit_code == 2
    assert "be at most 95.0 MiB, got 120.0 MiB: big.bin 120.0 MiB; leave files out with --exclude" in only_line(done)
    assert {job.id for job in head.server.jobs()} == before


def test_a_dry_run_sends_nothing_and_says_what_would_be_sent(head, tmp_path):
    (tmp_path / "note.txt").write_text("taken along\n")
    before = {job.id for job in head.server.jobs()}
    done = call("submit", "--dry-run", "--json", "--name", "x")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["upload"]["files"] == {"note.txt": 12}
    assert facts["command"][:4] == ["ganscale", "launch", "--address", "auto"]
    assert "note.txt" in done.stderr
    assert {job.id for job in head.server.jobs()} == before


def test_an_unknown_job_is_refused_by_every_verb_with_the_nearest(head, tmp_path):
    job_id = run_job(head, "true", root=tmp_path)
    ended(head, job_id)
    for verb in ("status", "logs", "stop"):
        done = call(verb, job_id[:-1])
        assert done.exit_code == 2
        assert only_line(done).startswith(f"error: JOB must be a known name, got {job_id[:-1]}; did you mean ")


def test_a_submitted_explanation_is_written_to_the_run_and_a_wrong_one_is_not_sent(head, tmp_path):
    launch(tiny_config(), name="tiny", runs_dir=tmp_path / "runs", workers=0)
    sent = call("explain", "tiny", "--method", "directions", "--num-samples", 2, "--workers", 1, "--submit")
    assert sent.exit_code == 0, (sent.output, sent.exception)
    jobs.follow_to_end(head.server, sent.stdout.strip(), print)
    assert (tmp_path / "runs" / "tiny" / "explanations" / "directions-001" / "explanation.json").is_file()
    before = len(head.server.jobs())
    wrong_options = ("--method", "lime", "--set", "cells=x")
    for wrong in (("--method", "directons"), ("--method", "lime", "--target", "critik"), wrong_options):
        done = call("explain", "tiny", *wrong, "--submit")
        assert (done.exit_code, done.stdout) == (2, "")
    assert len(head.server.jobs()) == before


JUDGES = """
import os
import pathlib

import torch


def judge(images):
    with pathlib.Path({places!r}).open("a") as stream:
        stream.write(os.getcwd() + os.linesep)
    light = images.flatten(1).mean(dim=1)
    return torch.stack([light, -light], dim=1)
"""


def test_a_job_of_all_methods_takes_a_classifier_from_the_files_that_were_sent_and_writes_one_report(head, tmp_path):
    launch(tiny_config(), name="tiny", runs_dir=tmp_path / "runs", workers=0)
    project, places = tmp_path / "project", tmp_path / "places.txt"
    project.mkdir()
    (project / "judges.py").write_text(JUDGES.format(places=str(places)))
    run = tmp_path / "runs" / "tiny"
    with contextlib.chdir(project):
        asked = ("--method", "all", "--budget", "10s", "--num-samples", 2, "--classifier", "judges:judge")
        sent = call("explain", run, *asked, "--submit")
    assert sent.exit_code == 0, (sent.output, sent.exception)
    jobs.follow_to_end(head.server, sent.stdout.strip(), print)
    assert {Path(place) == project for place in places.read_text().splitlines()} == {False}  # over there, not here
    record = json.loads((run / "explanations" / "all.json").read_text())
    assert [one["method"] for one in record["methods"]] == list(EXPLAINERS)  # made, or left out with the reason
    assert (run / "report.html").is_file()
