"""What a user can get wrong: exit 2, exactly one line on stderr in the contract's form, nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from calls import TINY, call, files_below
from PIL import Image

import ganscale
from ganscale.errors import ConfigError
from ganscale.runtime.run_lock import RunLock


def _missing(folder: Path) -> Path:
    return folder / "nowhere"


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _broken(folder: Path) -> Path:
    (folder / "broken").mkdir()
    for name in ("a.png", "b.jpg"):
        (folder / "broken" / name).write_bytes(b"no image at all")
    return folder / "broken"


LAUNCHES = {
    "unknown preset": (["--preset", "dcgn-fashion"], ["preset", "dcgan-fashion"]),
    "unknown key": (["--set", "trian.batch=8"], ["trian.batch", "train.batch"]),
    "unknown loss": (["--set", "loss.name=hinje"], ["loss.name", "hinge"]),
    "unknown data set": (["--data", "fashion-mist"], ["fashion-mnist"]),
    "no data set at all": (["--data", ""], ["data set", "empty"]),
    "a name too long for any disk": (["--name", "n" * 300], ["--name", "at most"]),
    "no key=value": (["--set", "train.batch"], ["--set", "key=value"]),
    "a number that is none": (["--set", "train.batch=many"], ["train.batch", "many"]),
    "a loss without its penalty": (
        ["--set", "loss.name=wasserstein", "--set", "penalty.name=none"],
        ["penalty.name", "wgan-gp"],
    ),
    "kimg below zero": (["--kimg", "-1"], ["--kimg", "above 0"]),
    "more GPUs than there can be": (["--gpus", "4096"], ["--gpus", "4096", "--workers"]),
    "batch that does not divide": (["--cpus", "2", "--workers", "2", "--set", "train.batch=33"], ["33"]),
    "more workers than cores": (["--workers", "4096"], ["--workers", "4096"]),
    "nobody at the address": (["--address", "127.0.0.1:1"], ["--address", "127.0.0.1:1"]),
    "a path for a name": (["--name", "a/b"], ["--name", "--runs-dir"]),
    "no run to resume": (["--resume", "nothing"], ["nothing", "config.json"]),
}


@pytest.mark.parametrize(("arguments", "words"), LAUNCHES.values(), ids=LAUNCHES.keys())
def test_a_launch_that_cannot_be_is_refused(arguments, words, tmp_path, monkeypatch, expect_refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "unused")  # so that an address is looked at before a token is asked for
    expect_refused(call("launch", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


JOB_VERBS = [["submit"], ["status"], ["status", "j"], ["logs", "j"], ["logs", "-f", "j"], ["stop", "j"], ["list-jobs"]]


@pytest.mark.parametrize("words", JOB_VERBS, ids=" ".join)
def test_a_dashboard_that_nobody_answers_at_is_refused_by_every_verb_of_jobs(
    words, tmp_path, monkeypatch, expect_refused
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "unused")
    expect_refused(call(*words, "--address", "http://127.0.0.1:1"), "http://127.0.0.1:1 (Connection refused)", "ssh -L")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def _denying_store() -> Iterator[str]:
    """An S3 server that refuses everybody; yields its address."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b"" if self.command == "HEAD" else b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *words: object) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("arguments", [["--runs-dir", "s3://bucket/runs"], ["--resume", "s3://bucket/runs/x"]])
def test_a_store_that_denies_access_is_refused_and_nothing_is_left(arguments, tmp_path, monkeypatch, expect_refused):
    for name, value in STORE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GANSCALE_CACHE", str(tmp_path))
    with _denying_store() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        done = call("launch", "--workers", 0, *arguments)
    expect_refused(done, "storage s3://bucket/runs", "ACCESS_DENIED", "give this process the right")
    assert files_below(tmp_path) == {}


STORE = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "y",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.mark.parametrize("make", [_missing, _empty, _broken])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["launch", "dry run"])
def test_data_that_cannot_be_trained_on_are_refused(make: Callable[[Path], Path], dry, tmp_path):
    data = make(tmp_path)
    before = files_below(tmp_path)
    done = call("launch", "--workers", 0, "--data", data, "--runs-dir", tmp_path / "runs", *dry, *TINY)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: data.path must ")
    assert files_below(tmp_path) == before
    assert not (tmp_path / "runs").exists()


def test_one_broken_file_among_good_ones_is_set_aside_and_listed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 30, 28), dtype=np.uint8)
    (tmp_path / "data").mkdir()
    for index, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path / "data" / f"{index}.png")
    (tmp_path / "data" / "bad.png").write_bytes(b"broken")
    options = ["--data", tmp_path / "data", "--runs-dir", tmp_path / "runs", "--kimg", 0.032]
    done = call("launch", "--workers", 0, "--name", "run", *options, *TINY)
    assert done.exit_code == 0, done.stderr
    listed = (tmp_path / "runs" / "run" / "quarantine.json").read_text()
    assert "bad.png" in listed
    assert "bad.png" in call("launch", "--dry-run", *options, *TINY).stdout


def test_a_run_directory_that_exists_is_refused_and_stays_as_it_is(launched, expect_refused):
    before = files_below(launched[1])
    where = ("--runs-dir", launched[1].parent, "--name", launched[1].name)
    expect_refused(call("launch", "--workers", 0, *where, *TINY), "tiny", "--resume", "--name")
    assert files_below(launched[1]) == before


def test_a_second_launch_into_a_run_is_refused_with_the_process_of_the_first(run, tmp_path, expect_refused):
    new = tmp_path / "runs" / "new"
    for folder, words in ((run, ["--resume", run, "--kimg", 1]), (new, ["--runs-dir", new.parent, "--name", new.name])):
        with RunLock(folder):
            before = files_below(folder)
            done = call("launch", "--workers", 0, *words, *([] if folder == run else TINY))
            expect_refused(done, str(folder), "one launch at a time", f"process {os.getpid()} on ", "wait until")
            assert files_below(folder) == before


def test_a_file_where_a_folder_is_needed_is_refused(launched, tmp_path, expect_refused):
    (tmp_path / "file").write_text("no folder")
    expect_refused(call("launch", "--workers", 0, "--runs-dir", tmp_path / "file", *TINY), "file")
    expect_refused(call("generate", launched[1], "--out", tmp_path / "file" / "grid.png"), "file")
    assert files_below(tmp_path) == {"file": b"no folder"}


RESUMES = {
    "a name beside it": (["--name", "other"], ["--name", "--resume"]),
    "another preset": (["--preset", "hinge-fashion"], ["--preset", "dcgan-fashion"]),
    "a length already reached": (["--kimg", "0.128"], ["train.kimg"]),
    "another network": (["--kimg", "1", "--set", "model.width=8"], ["model.width"]),
}


@pytest.mark.parametrize(("arguments", "words"), RESUMES.values(), ids=RESUMES.keys())
def test_a_resume_that_would_be_another_run_is_refused(arguments, words, launched, expect_refused):
    before = files_below(launched[1])
    expect_refused(call("launch", "--workers", 0, "--resume", launched[1], *arguments), *words)
    assert files_below(launched[1]) == before


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("damage", [_flip, _cut])
@pytest.mark.parametrize("verb", ["resume", "generate", "explain", "evaluate"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_offered(
    damage, verb, launched, tmp_path, expect_refused
):
    run = tmp_path / "runs" / "damaged"
    shutil.copytree(launched[1], run, ignore=shutil.ignore_patterns("generated", "explanations"))
    oldest, newest = sorted((run / "checkpoints").iterdir())
    file = newest / "ema.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    before = files_below(run)
    done = call(
        *{
            "resume": ["launch", "--workers", 0, "--resume", run, "--kimg", 1],
            "generate": ["generate", run],
            "explain": ["explain", run, "--method", "directions", "--workers", 0],
            "evaluate": ["evaluate", run, "--num", 100, "--metrics", "fd"],
        }[verb]
    )
    expect_refused(done, "ema.safetensors", newest.name, oldest.name)
    assert files_below(run) == before


def test_the_checkpoint_before_a_damaged_one_can_be_gone_on_from(launched, tmp_path):
    run = tmp_path / "again"
    shutil.copytree(launched[1], run)
    oldest, newest = sorted((run / "checkpoints").iterdir())
    (newest / "ema.safetensors").write_bytes(b"")
    done = call("launch", "--workers", 0, "--resume", oldest)
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line)["images"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [128, 256]


READINGS = {
    "unknown method": (["explain", "RUN", "--method", "kernel-shp"], ["kernel-shap"]),
    "unknown target": (["explain", "RUN", "--method", "directions", "--target", "critik"], ["critic"]),
    "unknown option": (["explain", "RUN", "--method", "directions", "--set", "step=2"], ["steps"]),
    "option without a value": (["explain", "RUN", "--method", "directions", "--set", "steps"], ["key=value"]),
    "too many explaining workers": (["explain", "RUN", "--method", "directions", "--workers", "4096"], ["4096"]),
    "unknown metric": (["evaluate", "RUN", "--metrics", "fid"], ["fd"]),
    "no metric": (["evaluate", "RUN", "--metrics", ""], ["metric"]),
    "more images than there are": (["evaluate", "RUN", "--num", "999999"], ["--num"]),
    "other data that are missing": (["evaluate", "RUN", "--data", "nowhere"], ["nowhere"]),
    "a file that exists": (["generate", "RUN", "--out", "RUN/config.json"], ["--out", "config.json"]),
    "a folder that is not empty": (["generate", "RUN", "--out", "RUN"], ["--out"]),
}


@pytest.mark.parametrize(("arguments", "words"), READINGS.values(), ids=READINGS.keys())
def test_a_reading_that_cannot_be_is_refused(arguments, words, launched, expect_refused):
    before = files_below(launched[1])
    expect_refused(call(*(argument.replace("RUN", str(launched[1])) for argument in arguments)), *words)
    assert files_below(launched[1]) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kimg": 0}, "kimg must be greater than 0, got 0; pass another kimg, or none"),
        ({"settings": {"train.batch": 0}}, 'got 0; change it with settings={"train.batch": "..."}'),
        ({"settings": ["loss.name=wasserstein", "penalty.name=none"]}, 'use settings={"penalty.name": "wgan-gp"}'),
        ({"settings": ["train.batch"]}, "settings must be written key=value, got train.batch; for example settings="),
        ({"settings": {"trian.batch": 8}}, "configuration key must be a known key, got trian.batch; did you mean"),
    ],
)
def test_a_call_is_told_in_words_of_python_not_of_the_command_line(tmp_path, arguments, words):
    for function, first in ((ganscale.launch, ()), (ganscale.tune, (["train.batch=8,16"],))):
        with pytest.raises(ConfigError, match=re.escape(words)) as caught:
            function(*first, **arguments, runs_dir=tmp_path)
        assert "--" not in str(caught.value)
    assert files_below(tmp_path) == {}
