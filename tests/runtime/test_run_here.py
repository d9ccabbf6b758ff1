"""A run in this process, without Ray: the run directory of the contract, resuming, and what is refused beforehand."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_runs import tiny_config

from ganscale.config import override
from ganscale.errors import CheckpointError, ConfigError, DataError, ResourceError, RunFailed, UserError
from ganscale.presets import preset
from ganscale.runtime import launch, load, plan, planner
from ganscale.runtime.resume import compare_settings
from ganscale.runtime.run_lock import ourselves
from ganscale.training.checkpoint import names, verify

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ticks = []
    run = launch(
        tiny_config(),
        name="tiny",
        runs_dir=tmp_path_factory.mktemp("runs"),
        workers=0,
        on_tick=ticks.append,
        command=("x",),
    )
    run.ticks = ticks
    return run


def test_a_run_leaves_the_directory_of_the_contract(run):
    found = {path.name for path in run.path.iterdir()}
    assert found == {"config.json", "metrics.jsonl", "tensorboard", "samples", "checkpoints", "quarantine.json"}
    page = json.loads((run.path / "config.json").read_text())
    assert page["command"] == ["x"]
    assert page["versions"]["torch"]
    assert run.config == tiny_config()
    assert [path.name for path in names(run.path / "checkpoints")] == ["kimg-000000.256", "kimg-000000.512"]
    assert (run.path / "samples" / "kimg-000000.512.png").is_file()


def test_every_tick_reaches_the_caller_once_and_in_order(run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert run.ticks == lines
    assert [line["images"] for line in lines] == [128, 256, 384, 512]


def test_image_k_depends_on_seed_and_k_alone(run):
    few, many, other = run.generate(2, seed=3), run.generate(70, seed=3), run.generate(2, seed=4)
    assert few.dtype == np.uint8
    assert few.shape == (2, 1, 28, 28)
    # a batch of another size may round the last bit differently, which moves a pixel by at most one
    assert np.abs(few.astype(int) - many[:2]).max() <= 1
    assert not np.array_equal(few, other)


def test_an_interpolation_moves_less_from_image_to_image_than_fresh_latents_do(run):
    def step(images):
        return np.abs(np.diff(images.astype(int), axis=0)).mean()

    assert step(run.generate(32, interpolate=True)) < 0.6 * step(run.generate(32))


@pytest.mark.parametrize("chosen", ["run", "checkpoint"])
def test_a_stopped_and_resumed_run_has_the_bits_of_one_that_never_stopped(run, tmp_path, chosen):
    first = launch(tiny_config(train__kimg=0.256), name="half", runs_dir=tmp_path, workers=0)
    place = first.path if chosen == "run" else first.path / "checkpoints" / "kimg-000000.256"
    ticks = []
    second = launch(tiny_config(), resume=place, workers=0, on_tick=ticks.append)
    assert second.path == first.path
    assert [tick["images"] for tick in ticks] == [384, 512]
    mine, theirs = (verify(names(r.path / "checkpoints")[-1])["weights"] for r in (second, run))
    assert mine == theirs
    page = json.loads((second.path / "config.json").read_text())
    assert page["resumed"][0]["changes"] == {"train.kimg": [0.256, 0.512]}


def test_what_a_killed_launch_left_stops_no_later_one(tmp_path):
    (tmp_path / "x" / ".ray").mkdir(parents=True)
    (tmp_path / "x" / ".ray" / "stop").touch()
    (tmp_path / "x" / ".lock").write_text(dataclasses.replace(ourselves(), started="1").to_json())
    first = launch(tiny_config(train__kimg=0.256), name="x", runs_dir=tmp_path, workers=0)
    (first.path / ".ray").mkdir()
    (first.path / ".ray" / "stop").touch()
    assert launch(tiny_config(), resume=first.path, workers=0).checkpoint().images == 512
    assert not (first.path / ".ray").exists()


def test_the_best_evaluated_checkpoint_outlives_the_newest_ones(tmp_path):
    settings = {"model.width": 16, "checkpoint.keep": 1, "checkpoint.keep_best": "modes-hit", "sample.every_kimg": 99}
    config = override(preset("r3gan-gaussians"), settings | {"checkpoint.every_kimg": 0.512, "train.kimg": 0.512})
    first = launch(config, name="points", runs_dir=tmp_path, workers=0)
    evaluated = names(first.path / "checkpoints")[-1].name
    first.evaluate(num=1000)
    longer = override(config, {"train.kimg": 2.048})
    kept = [path.name for path in names(launch(longer, resume=first.path, workers=0).path / "checkpoints")]
    assert kept == [evaluated, "kimg-000002.048"]
    longest = override(longer, {"train.kimg": 3.072, "checkpoint.keep_best": None})
    kept = [path.name for path in names(launch(longest, resume=first.path, workers=0).path / "checkpoints")]
    assert kept == ["kimg-000003.072"]


def test_settings_that_make_it_another_run_may_not_change_on_resume():
    old = tiny_config()
    changed = compare_settings(old, tiny_config(train__kimg=9, checkpoint__keep=1, sample__num=9, train__tick_kimg=1))
    assert set(changed) == {"train.kimg", "checkpoint.keep", "sample.num", "train.tick_kimg"}
    for key in ("train.batch", "model.width", "loss.name", "optim.generator.lr", "train.seed"):
        value = {"loss.name": "hinge", "optim.generator.lr": 0.1}.get(key, 16)
        with pytest.raises(ConfigError, match=f"^{key} must stay"):
            compare_settings(old, tiny_config(**{key.replace(".", "__"): value}))


def test_a_length_already_reached_is_refused(run):
    with pytest.raises(ConfigError, match=r"train\.kimg must exceed the 0\.512 kimg already trained"):
        launch(tiny_config(), resume=run.path, workers=0)


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_offered(tmp_path):
    made = launch(tiny_config(), name="bad", runs_dir=tmp_path, workers=0)
    damaged = names(made.path / "checkpoints")[-1] / "critic.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    for use in (lambda: launch(tiny_config(train__kimg=1), resume=made.path, workers=0), load(made.path).generate):
        with pytest.raises(CheckpointError) as caught:
            use()
        assert "critic.safetensors" in str(caught.value)
        assert "--resume" in str(caught.value)
        assert "kimg-000000.256" in str(caught.value)
    assert damaged.is_file()  # a refusal deletes nothing


@pytest.mark.parametrize(
    ("changes", "arguments", "error"),
    [
        ({}, {"gpus": 64}, ResourceError),
        ({}, {"workers": 10_000}, ResourceError),
        ({"data__path": "no-such-data"}, {}, DataError),
        ({"data__path": "./no/such/folder"}, {}, DataError),
        ({}, {"name": "a/b"}, UserError),
        ({"data__resolution": "30x30"}, {}, UserError),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(tmp_path, changes, arguments, error):
    with pytest.raises(error) as caught:
        launch(tiny_config(**changes), **{"name": "x", "runs_dir": tmp_path / "runs", "workers": 0, **arguments})
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_directory_is_refused_with_both_ways_out(run):
    with pytest.raises(UserError, match=rf"go on with --resume {run.path} or use another --name$"):
        launch(tiny_config(), name=run.name, runs_dir=run.path.parent, workers=0)


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(planner.shutil, "disk_usage", lambda path: planner.shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(ResourceError, match=r"MiB free, got 0 MiB; free some space"):
        launch(tiny_config(), name="x", runs_dir=tmp_path / "runs", workers=0)
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_fills_up_ends_the_run_in_one_line_with_the_way_on(tmp_path, monkeypatch):
    def write(self, record):
        if record.images >= 384:
            raise OSError(errno.ENOSPC, "No space left on device", "events.out")

    monkeypatch.setattr("ganscale.dashboards.TensorBoardSink.write", write)
    with pytest.raises(RunFailed) as caught:
        launch(tiny_config(), name="full", runs_dir=tmp_path, workers=0)
    assert str(caught.value) == (
        "no space left on the disk of events.out; free some; saved kimg-000000.256; "
        f"go on with ganscale launch --resume {tmp_path / 'full'}"
    )


def test_a_plan_says_what_a_launch_would_do_and_touches_nothing(tmp_path):
    placed = plan(tiny_config(), name="x", runs_dir=tmp_path / "runs")
    assert placed.run_dir == str(tmp_path / "runs" / "x")
    assert placed.estimate.seconds > 0
    assert placed.estimate.memory_bytes > 100 << 20
    assert not (tmp_path / "runs").exists()


def test_the_disk_estimate_covers_what_a_run_writes_and_not_much_more(run):
    written = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    estimated = plan(tiny_config(), name="y", runs_dir=run.path.parent, measure=False).estimate.disk_bytes
    assert written <= estimated <= 10 * written  # keep allows four checkpoints where this short run makes two


def test_names_are_found_where_none_is_given(run):
    assert planner.new_run_dir(run.config, run.path.parent, None).name == "dcgan-fashion"
    (run.path.parent / "dcgan-fashion").mkdir()
    assert planner.new_run_dir(run.config, run.path.parent, None).name == "dcgan-fashion-2"


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_what_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"^run must be a run directory"):
        load(tmp_path if content is not None else tmp_path / "missing")


def test_a_run_without_a_checkpoint_says_so(run, tmp_path):
    (tmp_path / "config.json").write_text((run.path / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"must hold a checkpoint"):
        load(tmp_path).generate(1)


def test_the_names_of_the_package_load_neither_torch_nor_ray():
    code = "import sys, ganscale.runtime; sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
