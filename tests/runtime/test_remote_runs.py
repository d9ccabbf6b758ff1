"""Laws of runs that an object store keeps: any machine goes on with them, no half counts, no failure is silent."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from stores import BUCKET, S3Server
from tiny_runs import SETTINGS, tiny_config

from ganscale.cli import main
from ganscale.config import CheckpointConfig, override
from ganscale.errors import CheckpointError, RunFailed, UserError
from ganscale.presets import preset
from ganscale.runtime import launch, load, plan
from ganscale.runtime.mirror import Mirror, complete_checkpoints
from ganscale.runtime.remote import publish, pull, pull_checkpoint, pull_newest_good, working_copy
from ganscale.runtime.run_lock import LOCK, ourselves, parse_holder
from ganscale.runtime.stopping import SCRATCH
from ganscale.runtime.storage import ObjectStore, StorageError
from ganscale.training.checkpoint import MANIFEST, newest, verify

pytestmark = pytest.mark.distributed
HALF = {"train__kimg": 0.256}
PATIENCE_S = 150  # only where all else fails


@pytest.fixture
def runs(address, machine) -> str:
    """Where the runs of this test are kept."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory):
    """The tiny run on a local disk, never stopped."""
    return launch(tiny_config(), name="x", runs_dir=tmp_path_factory.mktemp("straight"), workers=0)


def start(runs: str, **changes):
    return launch(tiny_config(**changes), name="x", runs_dir=runs, workers=0)


def keys(server: S3Server, runs: str) -> dict[str, int]:
    """What the store holds of the run x: name -> size."""
    prefix = f"{runs.removeprefix(f's3://{BUCKET}/')}/x/"
    return {key.removeprefix(prefix): size for key, size in server.objects(prefix).items()}


def key(runs: str, name: str) -> str:
    return f"{runs.removeprefix(f's3://{BUCKET}/')}/x/{name}"


def files(run_dir: Path) -> dict[str, int]:
    found = [path for path in run_dir.rglob("*") if path.is_file()]
    names = {path.relative_to(run_dir).as_posix(): path.stat().st_size for path in found}
    return {name: size for name, size in names.items() if not name.startswith(".")}


def ticks(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def test_the_store_holds_all_that_the_working_copy_holds_and_keeps_as_many_checkpoints(server, runs):
    run = start(runs, checkpoint__every_kimg=0.064, checkpoint__keep=2)
    assert run.path == working_copy(f"{runs}/x")
    assert keys(server, runs) == files(run.path)
    assert {"config.json", "metrics.jsonl", "quarantine.json", "samples/kimg-000000.png"} <= keys(server, runs).keys()
    assert complete_checkpoints(ObjectStore(f"{runs}/x")) == {"kimg-000000.448", "kimg-000000.512"}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_the_store_holds_what_was_evaluated_beside_training(server, runs, workers):
    cadences = {"checkpoint.every_kimg": 0.512, "evaluate.every_kimg": 0.512, "sample.every_kimg": 99}
    config = override(preset("r3gan-gaussians"), cadences | {"train.kimg": 1.024, "evaluate.num": 1000})
    run = launch(config, name="x", runs_dir=runs, workers=workers)
    assert "evaluations/kimg-000001.024.json" in keys(server, runs)
    assert keys(server, runs) == files(run.path)


@pytest.mark.parametrize("chosen", ["run", "checkpoint"])
def test_a_run_resumed_on_another_machine_has_the_bits_of_one_that_never_stopped(
    runs, machine, straight, server, chosen
):
    first = start(runs, **HALF)
    machine("second")
    place = f"{runs}/x" if chosen == "run" else f"{runs}/x/checkpoints/kimg-000000.256"
    second = launch(tiny_config(), resume=place, workers=0)
    assert second.path != first.path
    assert verify(newest(second.path))["weights"] == verify(newest(straight.path))["weights"]
    assert ticks(second.path) == ticks(straight.path)
    assert keys(server, runs).keys() >= files(second.path).keys()
    assert json.loads(server.read(key(runs, "config.json")))["resumed"][0]["images"] == 256
    machine("third")
    assert verify(newest(load(f"{runs}/x").path))["weights"] == verify(newest(straight.path))["weights"]


def test_a_run_survives_a_store_that_fails_every_third_request(runs, through, machine, straight, caplog):
    through(lambda number, method, path: 503 if number % 3 == 0 else None)
    start(runs, **HALF)
    machine("second")
    again = launch(tiny_config(), resume=f"{runs}/x", workers=0)
    assert verify(newest(again.path))["weights"] == verify(newest(straight.path))["weights"]


def test_a_damaged_object_is_refused_by_name_and_the_checkpoint_before_is_offered(server, runs, machine):
    start(runs)
    damaged = key(runs, "checkpoints/kimg-000000.512/critic.safetensors")
    content = bytearray(server.read(damaged))
    content[-1] ^= 1
    server.write(damaged, bytes(content))
    machine("second")
    for use in (lambda: load(f"{runs}/x"), lambda: launch(tiny_config(train__kimg=1), resume=f"{runs}/x", workers=0)):
        with pytest.raises(CheckpointError) as caught:
            use()
        words = str(caught.value)
        assert words.startswith(f"{runs}/x/checkpoints/kimg-000000.512/critic.safetensors must match the SHA-256")
        assert words.endswith(f"ganscale launch --resume {runs}/x/checkpoints/kimg-000000.256")
    good, refused = pull_newest_good(f"{runs}/x", machine("fourth") / "x")  # what workers that start again do instead
    assert (good.name, [str(error) for error in refused]) == ("kimg-000000.256", [words])
    offered = words.rpartition(" ")[2]
    again = launch(tiny_config(), resume=offered, workers=0)
    assert again.checkpoint().images == 512
    machine("third")
    assert load(f"{runs}/x").checkpoint().images == 512  # the damaged one was replaced


def test_an_object_that_may_not_be_read_is_not_taken_for_a_damaged_one(runs, through, machine):
    start(runs)
    machine("second")
    through(lambda number, method, path: 403 if "kimg-000000.512/critic" in path else None)
    for use in (pull, pull_newest_good):
        with pytest.raises(StorageError, match="ACCESS_DENIED"):
            use(f"{runs}/x", machine("second") / "x")


def test_a_prefix_without_a_manifest_is_no_checkpoint(server, runs, machine):
    start(runs)
    server.client.delete_object(Bucket=BUCKET, Key=key(runs, f"checkpoints/kimg-000000.512/{MANIFEST}"))
    machine("second")
    assert load(f"{runs}/x").checkpoint().images == 256


def test_an_upload_cut_off_at_any_request_never_yields_a_checkpoint_that_does_not_verify(
    server, runs, through, straight, tmp_path
):
    def cut_off_at(limit: int) -> bool:
        """Send the run through a proxy that refuses from request ``limit`` on; return whether all was sent."""
        through(lambda number, method, path: 403 if number >= limit else None)
        store = ObjectStore(f"{runs}/{limit}", tries=1)
        mirror = Mirror(straight.path, store, CheckpointConfig(keep=1))
        try:
            mirror.send()
        except StorageError:
            return False
        return True

    limits, whole = [1, 30, 45, *range(50, 400, 7)], 0
    for limit in limits:
        finished = cut_off_at(limit)
        address_of_server = ObjectStore(
            f"{runs}/{limit}?endpoint_override={server.url.removeprefix('http://')}&scheme=http"
        )
        complete = complete_checkpoints(address_of_server)
        for name in complete:
            pull_checkpoint(address_of_server, tmp_path / str(limit), name, complete)  # verifies every file
        whole += bool(complete)
        if finished:
            break
    assert finished
    assert 0 < whole < limits.index(limit)  # some cuts came before the first manifest, some after


def test_a_store_that_goes_away_fails_the_run_in_words_and_what_it_lacks_can_be_sent_later(
    server, runs, through, machine, address, monkeypatch
):
    monkeypatch.setattr("ganscale.runtime.storage.TRIES", 1)
    gone = []
    through(lambda number, method, path: 403 if gone else None)

    def on_tick(tick: dict) -> None:
        gone.append(tick)

    with pytest.raises(RunFailed, match=rf"{runs}/x does not hold all of the run: ") as caught:
        launch(tiny_config(), name="x", runs_dir=runs, workers=0, on_tick=on_tick)
    run_dir = working_copy(f"{runs}/x")
    assert f"it is whole in {run_dir}, and `ganscale report {run_dir}` sends the rest" in str(caught.value)
    assert newest(run_dir).name == "kimg-000000.512"
    address(server.url)
    load(run_dir).report()
    assert "report.html" in keys(server, runs)
    machine("second")
    assert load(f"{runs}/x").checkpoint().images == 512


@pytest.mark.parametrize(("status", "words"), [(403, "ACCESS_DENIED"), (None, "NO_SUCH_BUCKET")])
def test_a_store_that_will_never_do_is_refused_before_anything_is_written(runs, through, machine, status, words):
    through(lambda number, method, path: status)
    runs = runs if status else "s3://no-such-bucket/runs"
    with pytest.raises(UserError, match=words) as caught:
        start(runs)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not machine("first").exists()


def test_a_name_that_the_store_has_is_refused_and_none_given_takes_a_free_one(server, runs, machine):
    start(runs, **HALF)
    machine("second")
    with pytest.raises(UserError, match=rf"go on with --resume {runs}/x or use another --name$"):
        start(runs)
    server.write(f"{runs.removeprefix(f's3://{BUCKET}/')}/dcgan-fashion/config.json", b"{}")
    placed = plan(tiny_config(), runs_dir=runs, measure=False)
    assert placed.run_dir == f"{runs}/dcgan-fashion-2"
    assert not machine("second").exists()


def test_a_run_that_another_machine_writes_is_refused_until_its_lock_is_stale(server, runs, machine):
    start(runs, **HALF)
    holder = dataclasses.replace(ourselves(), host="far", machine="another boot")
    server.write(key(runs, LOCK), holder.to_json().encode())
    with pytest.raises(UserError, match=rf"run {runs}/x must be written by one launch at a time, got one by process"):
        launch(tiny_config(), resume=f"{runs}/x", workers=0)
    server.write(key(runs, LOCK), dataclasses.replace(ourselves(), started="1").to_json().encode())  # of a dead process
    launch(tiny_config(), resume=f"{runs}/x", workers=0)
    assert LOCK not in keys(server, runs)


@pytest.mark.parametrize(
    ("lost", "words"),
    [("metrics", r"exceed the 0\.256 kimg already trained"), (("metrics", "checkpoints"), "hold a checkpoint")],
)
def test_a_resume_that_is_refused_on_a_new_machine_deletes_nothing(server, runs, machine, lost, words):
    start(runs, **HALF)
    for name in keys(server, runs):
        if name.startswith(lost):
            server.client.delete_object(Bucket=BUCKET, Key=key(runs, name))
    before = keys(server, runs)
    machine("second")
    with pytest.raises(UserError, match=words):
        launch(tiny_config(**HALF), resume=f"{runs}/x", workers=0)
    assert keys(server, runs) == before


def test_a_run_that_another_machine_has_made_meanwhile_is_refused_and_left_alone(server, runs, monkeypatch):
    from ganscale.runtime.launcher import _preflight

    def preflight(*arguments):
        server.write(key(runs, "checkpoints/kimg-000001/manifest.json"), b"theirs")
        return _preflight(*arguments)

    monkeypatch.setattr("ganscale.runtime.launcher._preflight", preflight)
    with pytest.raises(UserError, match=rf"go on with --resume {runs}/x or use another --name$"):
        start(runs)
    assert server.read(key(runs, "checkpoints/kimg-000001/manifest.json")) == b"theirs"


@pytest.mark.parametrize("has_trained", [False, True])
def test_a_new_run_that_is_refused_is_deleted_unless_workers_elsewhere_have_saved_something(server, runs, has_trained):
    def refuse(plan):
        if has_trained:
            server.write(key(runs, "checkpoints/kimg-000001/manifest.json"), b"{}")
        raise UserError("this", "be another", "it", "change it")

    with pytest.raises(UserError, match="this must be another"):
        launch(tiny_config(), name="x", runs_dir=runs, workers=0, on_start=refuse)
    assert bool(keys(server, runs)) == has_trained
    assert working_copy(f"{runs}/x").exists() == has_trained
    assert not (working_copy(f"{runs}/x") / SCRATCH).exists()


def test_a_run_is_locked_in_the_store_while_it_trains(server, runs):
    seen = []
    launch(
        tiny_config(), name="x", runs_dir=runs, workers=0, on_tick=lambda _: seen.append(server.read(key(runs, LOCK)))
    )
    assert parse_holder(seen[0].decode()).pid == ourselves().pid


def test_a_working_copy_that_is_further_than_the_store_is_not_set_back(server, runs, straight):
    run = start(runs)
    for name in keys(server, runs):
        if name.startswith("checkpoints/kimg-000000.512/"):
            server.client.delete_object(Bucket=BUCKET, Key=key(runs, name))
    assert load(f"{runs}/x").checkpoint().images == 512
    publish(run.path)
    assert keys(server, runs) == files(run.path)


def test_a_working_copy_of_an_older_run_of_the_same_address_gives_way_and_is_not_lost(server, runs, machine, caplog):
    old = start(runs)
    for name in keys(server, runs):
        server.client.delete_object(Bucket=BUCKET, Key=key(runs, name))
    machine("second")
    start(runs, **HALF)
    page = json.loads(server.read(key(runs, "config.json"))) | {"created": "another day"}
    server.write(key(runs, "config.json"), json.dumps(page).encode())
    machine("first")
    assert load(f"{runs}/x").checkpoint().images == 256
    assert "held an older run of the same address" in caplog.text
    aside = [path for path in old.path.parent.iterdir() if path.name.startswith("x-")]
    assert newest(aside[0]).name == "kimg-000000.512"


def test_a_process_that_is_killed_leaves_a_run_that_another_machine_goes_on_with(server, runs, machine, straight):
    flags = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "ganscale", "launch", "--preset", "dcgan-fashion", *flags, "--workers", "0"]
    command += ["--runs-dir", runs, "--name", "x", "--kimg", "100000", "--set", "checkpoint.every_kimg=0.256"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while not complete_checkpoints(ObjectStore(f"{runs}/x")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
    process.kill()
    process.communicate()
    machine("second")
    saved = load(f"{runs}/x").checkpoint()
    assert saved.images % 256 == 0
    more = tiny_config(train__kimg=saved.images / 1000 + 0.032)
    again = launch(more, resume=f"{runs}/x", workers=0)  # the lock of the dead process is taken over
    assert again.checkpoint().images == saved.images + 32
    lines = [tick["images"] for tick in ticks(again.path)]
    assert lines == sorted(set(lines))
    assert lines[-1] == saved.images + 32


def test_the_verbs_take_an_address_for_a_run(server, runs, machine, tmp_path):
    def call(*words: object):
        return CliRunner().invoke(main, [str(word) for word in words])

    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    done = call("launch", "--preset", "dcgan-fashion", *settings, "--workers", 0, "--runs-dir", runs, "--name", "x")
    assert done.exit_code == 0, done.output
    assert f"next: ganscale generate {runs}/x" in done.stdout
    machine("second")
    done = call("report", f"{runs}/x")
    assert done.exit_code == 0, done.output
    assert "report.html" in keys(server, runs)
    assert call("generate", f"{runs}/x", "--num", 4, "--out", tmp_path / "grid.png").exit_code == 0
    done = call("launch", "--workers", 0, "--runs-dir", runs, "--resume", "x", "--kimg", 0.6)
    assert done.exit_code == 0, done.output
    machine("third")
    assert load(f"{runs}/x").checkpoint().images == 608
    refused = call("report", f"{runs}/none")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: run must be one in the store, ")
