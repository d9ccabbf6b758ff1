"""Evaluation and explanation beside training: what is due, who pays, that it says what ``ganscale evaluate`` says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import SETTINGS, descendants, is_alive, tiny_config, write_pictures
from torch.nn import Conv2d
from torch.nn.modules.module import register_module_forward_pre_hook

from ganscale.config import EXPLAINER_NAMES, override
from ganscale.errors import ConfigError, ResourceError
from ganscale.explain import EXPLAINERS, Explanation
from ganscale.models.dcgan import DCGANGenerator
from ganscale.presets import preset
from ganscale.progress import images_of
from ganscale.runtime import Resources, explain_run, launch, load
from ganscale.runtime.beside import Due, Events, what_is_due
from ganscale.runtime.beside_start import refuse_far_away
from ganscale.runtime.beside_work import Work
from ganscale.runtime.local import ray_session
from ganscale.runtime.placement import place
from ganscale.runtime.run import GENERATE_BATCH
from ganscale.training.checkpoint import names, verify
from ganscale.training.checkpoint_writer import CheckpointWriter
from ganscale.training.retention import READING

pytestmark = pytest.mark.distributed
PATIENCE_S = 120  # only where all else fails
HERE = Resources(cpus=2, gpus=0, memory_bytes=None, where="this machine")


def points_config(**changes):
    """Return a run on points of the plane that is over in two seconds, with an evaluation at each of 4 checkpoints."""
    settings = {
        "model.width": 16,
        "train.kimg": 2.048,
        "train.tick_kimg": 0.512,
        "sample.every_kimg": 99,
        "checkpoint.every_kimg": 0.512,
        "evaluate.every_kimg": 0.512,
        "evaluate.num": 500,
    }
    return override(preset("r3gan-gaussians"), settings | {k.replace("__", "."): v for k, v in changes.items()})


def events_of(run):
    return [json.loads(line) for line in (run.path / "beside.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("images", "seen", "evaluate", "explain", "due"),
    [
        (None, None, 4, 4, (False, False, 0)),  # nothing saved yet
        (3000, None, 4, None, (False, False, 0)),
        (4096, 3000, 4, None, (True, False, 0)),
        (4096, 4096, 4, 4, (False, False, 0)),  # seen already
        (6000, 4096, 4, None, (False, False, 0)),
        (8000, 4096, 4, 8, (True, True, 0)),
        (16000, 4096, 4, 8, (True, True, 3)),  # 8 and 12 kimg of one, 8 of the other were passed over
        (16000, None, 4, None, (True, False, 0)),  # a resumed run: what was before it was not skipped by it
        (16000, 8000, None, None, (False, False, 0)),
    ],
)
def test_the_newest_checkpoint_is_due_once_for_each_cadence_and_what_it_passed_over_is_counted(
    images, seen, evaluate, explain, due
):
    found = what_is_due(images, seen, evaluate_kimg=evaluate, explain_kimg=explain)
    assert dataclasses.astuple(found) == due
    assert bool(found) == (due[0] or due[1])
    assert isinstance(found, Due)


@pytest.mark.parametrize("part", ["evaluate", "explain"])
def test_a_cadence_shorter_than_that_of_checkpoints_is_refused(part):
    with pytest.raises(ConfigError, match=rf"^{part}\.every_kimg must be at least checkpoint\.every_kimg \(20\)"):
        override(preset("dcgan-fashion"), {f"{part}.every_kimg": 10})


def test_every_explainer_can_be_asked_for():
    assert set(EXPLAINER_NAMES) == set(EXPLAINERS)


@pytest.mark.parametrize(
    ("kept", "workers", "cpus", "threads", "beside"),
    [(0, 1, None, 2, 0), (0, 2, None, 1, 0), (1, 1, None, 1, 1), (1, 0, None, 1, 1), (0, 1, 1, 1, 0)],
)
def test_placement_adds_up_training_and_evaluation(kept, workers, cpus, threads, beside):
    found = place(points_config(evaluate__cpus=kept), HERE, workers=workers, cpus=cpus)
    assert (found.threads, found.beside) == (threads, beside)
    assert max(1, workers) * found.threads + found.beside <= HERE.cpus
    assert "beside training" in found.lines()["evaluation"]
    assert place(tiny_config(), HERE, workers=workers).beside is None


def test_a_core_that_is_not_there_is_refused_with_what_would_work():
    with pytest.raises(ResourceError, match=r"--workers must be at most 1, .* but the one of evaluate\.cpus"):
        place(points_config(evaluate__cpus=1), HERE, workers=2)
    with pytest.raises(ResourceError, match=r"evaluate\.cpus must leave a core for training.*evaluate\.cpus=0"):
        place(points_config(evaluate__cpus=1), dataclasses.replace(HERE, cpus=1), workers=0)


def test_checkpoints_that_pass_no_shared_folder_are_refused():
    here = place(points_config(), HERE, workers=1)
    refuse_far_away(here, "s3://bucket/run")  # trained on this machine, from its working copy
    with pytest.raises(ConfigError, match="ganscale evaluate s3://bucket/run"):
        refuse_far_away(dataclasses.replace(here, address="head:6379"), "s3://bucket/run")


def test_a_checkpoint_that_is_being_evaluated_is_not_deleted(tmp_path):
    settings = override(tiny_config(), {"checkpoint.keep": 1}).checkpoint
    parts = {name: {} for name in ("generator", "critic", "ema")}
    (tmp_path / ".ray").mkdir()
    with CheckpointWriter(tmp_path, settings) as writer:
        for images in (1000, 2000, 3000):
            (tmp_path / READING).write_text("kimg-000001")
            writer.make_room(images)
            writer.write(images, parts, {})
        writer.settle()
        assert [path.name for path in names(tmp_path / "checkpoints")] == ["kimg-000001", "kimg-000003"]
        (tmp_path / READING).unlink()
        writer.write(4000, parts, {})
    assert [path.name for path in names(tmp_path / "checkpoints")] == ["kimg-000004"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without Ray whose checkpoints are evaluated and explained beside it."""
    config = points_config(checkpoint__keep=9, explain__every_kimg=0.512)
    return launch(config, name="beside", runs_dir=tmp_path_factory.mktemp("runs"), workers=0)


def test_the_last_checkpoint_is_always_evaluated_and_explained(run):
    last = names(run.path / "checkpoints")[-1]
    done = {(event["event"], event["images"]) for event in events_of(run)}
    assert {("evaluated", images_of(last.name)), ("explained", images_of(last.name))} <= done
    explained = Explanation.load(max((run.path / "explanations").glob("integrated-gradients-*")))
    assert explained.meta["run"]["images"] == images_of(last.name)


def test_each_evaluation_beside_training_equals_that_of_the_command(run):
    pages = sorted((run.path / "evaluations").glob("kimg-*.json"))
    assert pages
    for page in pages:
        beside = json.loads(page.read_text())
        load(run.path / "checkpoints" / page.stem).evaluate()  # writes the same file
        assert json.loads(page.read_text()) == beside


def test_training_has_the_bits_of_a_run_without_evaluation(run, tmp_path):
    config = points_config(checkpoint__keep=9, evaluate__every_kimg=None)
    alone = launch(config, name="alone", runs_dir=tmp_path, workers=0)
    assert not (alone.path / "beside.jsonl").exists()
    mine, theirs = (verify(names(r.path / "checkpoints")[-1])["weights"] for r in (alone, run))
    assert mine == theirs


def test_evaluations_are_on_the_same_board_at_their_images(run):
    events = board_of(run)
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("evaluation/within 4 sigma")]
    assert {tag.rpartition("/")[2] for tag in tags} == {"value", "floor"}
    steps = {event.step for tag in tags for event in events.Scalars(tag)}
    assert steps >= {event["images"] for event in events_of(run) if event["event"] == "evaluated"}


def test_explanations_are_on_the_same_board_at_their_images(run):
    events, explained = board_of(run), {event["images"] for event in events_of(run) if event["event"] == "explained"}
    assert explained
    parts = {"images": "explanation/integrated-gradients/", "scalars": "explanation_score/integrated-gradients/"}
    for kind, start in parts.items():
        tags = [tag for tag in events.Tags()[kind] if tag.startswith(start)]
        shown = {event.step for tag in tags for event in getattr(events, kind.capitalize())(tag)}
        assert shown >= explained
    assert {tag.rpartition("/")[2] for tag in tags} == {"value", "control"}


def board_of(run):
    """Return what TensorBoard shows beside the trainer's own page."""
    guidance = {"scalars": 0, "images": 0}
    return EventAccumulator(str(run.path / "tensorboard" / "evaluation"), size_guidance=guidance).Reload()


@pytest.fixture
def forwards():
    """All calls of modules from here on: (module, rows of its input)."""
    calls = []
    hook = register_module_forward_pre_hook(lambda module, inputs: calls.append((module, len(inputs[0]))))
    yield calls
    hook.remove()


def test_one_pass_gives_all_metrics_of_images_and_equals_the_command(tmp_path, monkeypatch, forwards):
    """Pictures need a judge that is trained: here on 300 small ones, in a cache of its own."""
    monkeypatch.setenv("GANSCALE_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "data", 300)
    settings = {"data__path": str(tmp_path / "data"), "data__resolution": 16, "evaluate__every_kimg": 0.256}
    run = launch(tiny_config(**settings, evaluate__num=100), name="x", runs_dir=tmp_path, workers=0)
    page = run.path / "evaluations" / "kimg-000000.512.json"
    beside = json.loads(page.read_text())
    assert [name.split(" ")[0] for name in beside["values"]] == [
        "FD",
        "KD",
        "precision",
        "recall",
        "density",
        "coverage",
    ]
    run.evaluate()
    assert json.loads(page.read_text()) == beside
    first, last = names(run.path / "checkpoints")
    work = Work(run.path, Events(run.path))
    work.look(first, evaluate=True, explain=False, give_up=lambda: False)  # which looks at the reals, once
    forwards.clear()
    work.look(last, evaluate=True, explain=False, give_up=lambda: False)
    assert json.loads(page.read_text()) == beside
    passed = {
        kind: [rows for module, rows in forwards if isinstance(module, kind)] for kind in (DCGANGenerator, Conv2d)
    }
    assert passed[DCGANGenerator] == [GENERATE_BATCH, 100 - GENERATE_BATCH]
    assert passed[Conv2d] == [100, 100]  # its two layers, once: the network of the features takes 256 at a time


def test_an_evaluation_that_fails_is_a_line_and_the_run_goes_on(tmp_path):
    write_pictures(tmp_path / "data", 12)  # too few for a value and a floor
    settings = {"data__path": str(tmp_path / "data"), "data__resolution": 16, "evaluate__every_kimg": 0.256}
    heard = []
    config = tiny_config(**settings, train__batch=4)
    run = launch(config, name="x", runs_dir=tmp_path, workers=0, on_event=heard.append)
    assert run.checkpoint().images == 512
    assert not (run.path / "evaluations").exists()
    assert {event["event"] for event in heard} == {"failed"}
    assert "must number at least 10 each" in heard[-1]["words"]


@pytest.fixture
def unexplained(run, tmp_path):
    """The run without its explanations."""
    copy = tmp_path / "x"
    shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns("explanations", "tensorboard", "beside.jsonl"))
    return copy


def test_an_explanation_over_its_budget_is_left_and_said(unexplained):
    page = json.loads((unexplained / "config.json").read_text())
    page["config"]["explain"]["budget"] = 0.0001
    (unexplained / "config.json").write_text(json.dumps(page))
    newest = names(unexplained / "checkpoints")[-1]
    Work(unexplained, Events(unexplained)).look(newest, evaluate=False, explain=True, give_up=lambda: False)
    (left,) = events_of(load(unexplained))
    assert left["event"] == "skipped"
    assert "explain.budget of 0.0001 s is spent" in left["words"]
    assert not (unexplained / "explanations").exists()


def test_an_explanation_that_the_end_overtakes_after_its_last_chunk_is_left_and_the_last_one_stays_the_last(
    unexplained, monkeypatch
):
    work, ending, compute = Work(unexplained, Events(unexplained)), threading.Event(), explain_run.explain_networks
    first, *_, last = names(unexplained / "checkpoints")

    def compute_until_the_end(*arguments, **options):
        found = compute(*arguments, **options)
        monkeypatch.setattr(explain_run, "explain_networks", compute)
        ending.set()
        work.look(last, evaluate=False, explain=True, give_up=lambda: False)
        return found

    monkeypatch.setattr(explain_run, "explain_networks", compute_until_the_end)
    work.look(first, evaluate=False, explain=True, give_up=ending.is_set)
    explained, left = events_of(load(unexplained))
    assert (explained["event"], explained["images"]) == ("explained", images_of(last.name))
    assert (left["event"], left["images"]) == ("skipped", images_of(first.name))
    assert "training has ended" in left["words"]
    assert [path.name for path in (unexplained / "explanations").glob("integ*")] == ["integrated-gradients-001"]


def test_two_explanations_that_are_kept_at_once_delete_neither(unexplained, monkeypatch):
    work, both, number = Work(unexplained, Events(unexplained)), threading.Barrier(2), explain_run.next_directory

    def number_with_the_other(*arguments):
        found = number(*arguments)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)  # who comes here alone has the other one wait for what it writes
        return found

    monkeypatch.setattr(explain_run, "next_directory", number_with_the_other)
    checkpoints = names(unexplained / "checkpoints")[-2:]
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(work._explain, load(path), lambda: False) for path in checkpoints]
    assert [one.exception() for one in done] == [None, None]
    kept = [Explanation.load(path) for path in (unexplained / "explanations").glob("integrated-gradients-*")]
    assert {one.meta["run"]["images"] for one in kept} == {images_of(path.name) for path in checkpoints}


def test_a_launch_that_is_killed_takes_the_evaluation_with_it(tmp_path):
    settings = SETTINGS | {"evaluate.every_kimg": 90_000, "checkpoint.every_kimg": 90_000}
    flags = [word for key, value in settings.items() if key != "train.kimg" for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "ganscale", "launch", "--kimg", "100000", "--workers", "0", "--name", "x", *flags]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        children = until(lambda: descendants(process.pid))
    finally:
        process.kill()
        process.wait()
    assert len(children) == 1
    assert until(lambda: not any(is_alive(pid) for pid in children))


def until(condition):
    """Wait until ``condition()`` holds and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    return found


@pytest.mark.ray
def test_under_ray_a_lost_evaluation_process_is_replaced_and_training_knows_nothing_of_it(tmp_path):
    """SIGKILL the actor at the first tick; the last checkpoint is evaluated all the same."""
    killed = []

    def kill_it(tick):
        if not killed:
            with contextlib.suppress(ProcessLookupError):
                killed.append(until(beside_actor))
                os.kill(killed[0], signal.SIGKILL)

    before = descendants(os.getpid())
    with ray_session(cpus=2, gpus=0):
        config = points_config(checkpoint__keep=9)
        other = launch(config, name="beside", runs_dir=tmp_path, workers=1, on_tick=kill_it)
    assert killed
    assert descendants(os.getpid()) <= before
    checkpoint = names(other.path / "checkpoints")[-1]
    page = other.path / "evaluations" / f"{checkpoint.name}.json"
    beside = json.loads(page.read_text())
    load(checkpoint).evaluate()
    assert json.loads(page.read_text()) == beside
    assert other.page["placement"]["beside"] == 0


def beside_actor():
    """Return the pid of our own evaluation actor, as its process title says."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as stream:
            if "Beside" in stream.read():
                return pid
    return None
