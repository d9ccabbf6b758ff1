"""Sweeps under Ray Tune: a driver that is killed loses nothing, a worse trial copies a better one, trials are runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny_runs import descendants, is_alive, tiny_config, write_pictures

from ganscale.config import override
from ganscale.presets import preset
from ganscale.progress import images_of
from ganscale.runtime import load
from ganscale.runtime.local import ray_session
from ganscale.runtime.placement import Resources
from ganscale.runtime.sweep import DONE, FAILED, STOPPED, read_sweep
from ganscale.runtime.sweep_trial import run_trial, train_to
from ganscale.runtime.tune import plan_sweep, resume_sweep, tune
from ganscale.runtime.tune_ray import _Record
from ganscale.training.checkpoint import names
from ganscale.training.retention import score_name

pytestmark = pytest.mark.ray
PATIENCE_S = 240  # only where all else fails
SETTINGS = {
    "model.width": 16,
    "train.tick_kimg": 1.024,
    "sample.every_kimg": 999,
    "checkpoint.every_kimg": 999,
    "checkpoint.keep": 9,
    "evaluate.num": 1000,
}


@pytest.fixture(scope="module", autouse=True)
def shared_ray(tmp_path_factory):
    """One local Ray for the sweeps of this process, whose workers keep what they train in a cache of their own."""
    before = descendants(os.getpid())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANSCALE_CACHE", str(tmp_path_factory.mktemp("cache")))
        with ray_session(cpus=2, gpus=0):
            yield
    assert descendants(os.getpid()) <= before, "Ray left processes behind"


def value_of(run, objective):
    """Return what ``ganscale evaluate`` gives for ``objective``."""
    return next(v.value for name, v in run.evaluate().values.items() if score_name(name) == objective)


def kill_after_a_score(runs_dir, *how):
    """Run a sweep in a process of its own, SIGKILL it after its first score; return what it wrote."""
    flags = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = ["tune", "--preset", "r3gan-gaussians", "--param", "optim.critic.lr=log:1e-4:1e-2", *how]
    command += ["--every", "1.024", "--workers", "2", "--name", "s", "--runs-dir", str(runs_dir)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ganscale", *command, *flags], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    page, deadline = runs_dir / "s" / "sweep.json", time.monotonic() + PATIENCE_S
    try:
        while not (page.exists() and any(trial["scores"] for trial in json.loads(page.read_text())["trials"])):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        children = descendants(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    while any(is_alive(pid) for pid in children):  # its Ray notices that nobody is there any more
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)
    return json.loads(page.read_text())


def test_a_sweep_whose_driver_was_killed_goes_on_and_trains_nothing_twice(tmp_path):
    killed = kill_after_a_score(tmp_path, "--trials", "4", "--kimg", "9.216")
    assert any(trial["state"] != DONE for trial in killed["trials"])
    sweep = resume_sweep(tmp_path / "s")
    assert sweep.is_over
    assert all(trial.state in (DONE, STOPPED) for trial in sweep.trials)
    for before, trial in zip(killed["trials"], sweep.trials, strict=True):
        assert trial.settings == before["settings"]
        assert trial.scores[: len(before["scores"])] == before["scores"]
        passed = [sum(score["images"] >= at for at in sweep.milestones) for score in trial.scores]
        assert passed == list(range(1, len(passed) + 1))  # one score a milestone, none of them twice
    assert any(trial.state == DONE for trial in sweep.trials)
    assert read_sweep(sweep.path) == sweep
    assert not (sweep.path / ".ray").exists()
    assert not [path for path in sweep.path.rglob("*") if path.suffix in (".pkl", ".pickle")]
    best = sweep.best_run()
    assert best.config.optim.critic.lr == sweep.best.settings["optim.critic.lr"]
    assert value_of(best, sweep.objective) == sweep.best.last
    done = resume_sweep(sweep.path)  # nothing is left to do
    assert done == sweep


def test_a_population_whose_driver_was_killed_goes_on_with_the_settings_and_scores_that_it_had(tmp_path):
    killed = kill_after_a_score(tmp_path, "--scheduler", "pbt", "--trials", "2", "--kimg", "4.096")
    assert any(trial["state"] != DONE for trial in killed["trials"])
    sweep = resume_sweep(tmp_path / "s")
    assert sweep.scheduler == "pbt"
    assert [trial.state for trial in sweep.trials] == [DONE] * 2, sweep.trials
    for before, trial in zip(killed["trials"], sweep.trials, strict=True):
        old, new = trial.scores[: len(before["scores"])], trial.scores[len(before["scores"]) :]
        assert old == before["scores"]
        assert trial.images >= sweep.milestones[-1]
        if new and not new[0]["copied_from"]:  # it goes on from where it was
            assert new[0]["settings"] == before["settings"]
            assert new[0]["images"] > max([0, *(score["images"] for score in old)])
    assert not (sweep.path / ".ray").exists()
    assert value_of(sweep.best_run(), sweep.objective) == sweep.best.last


def test_a_worse_trial_copies_a_better_one_by_checkpoint_and_changes_its_settings(tmp_path):
    config = override(preset("r3gan-gaussians"), SETTINGS | {"train.kimg": 6.144})
    sweep = tune(
        config,
        ["optim.critic.lr=log:1e-4:1e-2", "optim.generator.lr=log:1e-4:1e-2"],
        trials=3,
        scheduler="pbt",
        every_kimg=1.024,
        workers=2,
        name="s",
        runs_dir=tmp_path,
    )
    assert sweep.is_over
    copied = [(trial, score) for trial in sweep.trials for score in trial.scores if score["copied_from"]]
    assert copied
    for trial, score in copied:
        assert score["copied_from"] != trial.name
    trial = copied[-1][0]
    run = load(sweep.path / trial.name)
    changes = {key: change for event in run.page["resumed"] for key, change in event["changes"].items()}
    assert changes.keys() & {"optim.critic.lr", "optim.generator.lr"}
    assert run.config.optim.critic.lr == trial.settings["optim.critic.lr"]
    assert all(1e-4 <= trial.settings[key] <= 1e-2 for trial in sweep.trials for key in sweep.params)
    assert value_of(run, sweep.objective) == trial.last
    assert images_of(names(run.path / "checkpoints")[-1].name) >= sweep.milestones[-1]


def test_trials_on_images_are_scored_through_one_network_that_is_trained_once(tmp_path):
    write_pictures(tmp_path / "data", 300)
    config = tiny_config(data__path=str(tmp_path / "data"), data__resolution=16, evaluate__num=100, train__kimg=0.512)
    sweep = tune(
        config,
        ["optim.critic.lr=1e-4,1e-2"],
        trials=2,
        every_kimg=0.256,
        workers=2,
        name="s",
        runs_dir=tmp_path,
    )
    assert sweep.is_over
    assert sweep.best.state == DONE
    assert sorted(trial.settings["optim.critic.lr"] for trial in sweep.trials) == ["1e-2", "1e-4"]
    pages = [json.loads(page.read_text()) for page in sweep.path.glob("trial-*/evaluations/kimg-*.json")]
    assert len(pages) == sum(len(trial.scores) for trial in sweep.trials)
    stamps = [value["stamp"]["extractor_sha256"] for page in pages for value in page["values"].values()]
    assert len(set(stamps)) == 1
    assert (sweep.objective, sweep.better) == ("fd", "lower")
    assert sweep.best.last == min(trial.last for trial in sweep.trials if trial.state == DONE)
    assert value_of(sweep.best_run(), "fd") == sweep.best.last  # the very number that the command gives


def two_trials(runs_dir, param, scheduler, *, kimg, every_kimg):
    """Plan a sweep for what needs no Tune."""
    config = override(preset("r3gan-gaussians"), SETTINGS | {"train.kimg": kimg})
    here = Resources(cpus=1, gpus=0, memory_bytes=None, where="this machine")
    asked = {"trials": 2, "scheduler": scheduler, "every_kimg": every_kimg, "objective": None, "workers": 1}
    return plan_sweep(config, [param], name="s", runs_dir=runs_dir, resources=here, **asked)


def test_a_trial_that_cannot_go_on_is_written_down_with_its_reason_and_is_no_best(tmp_path):
    """Without Tune: what the trial reports, and what becomes of the report."""
    sweep = two_trials(tmp_path, "optim.critic.lr=1e-3,1e30", "asha", kimg=2.048, every_kimg=2.048)
    sweep.path.mkdir()
    record = _Record(sweep, None)
    for trial in sweep.trials:
        found = []
        run_trial(sweep, trial, trial.settings, None, found.append)
        record.on_trial_result(0, [], trial.name, found[-1] | {"settings": trial.settings})
        record.on_trial_complete(0, [], trial.name)
    states = {trial.settings["optim.critic.lr"]: trial.state for trial in read_sweep(sweep.path).trials}
    assert states == {"1e-3": DONE, "1e30": FAILED}
    failed = next(trial for trial in sweep.trials if trial.state == FAILED)
    assert "is not finite" in failed.words
    assert sweep.best.state == DONE


def test_a_score_that_was_not_told_before_tune_ended_the_process_is_told_by_the_next(tmp_path):
    sweep = two_trials(tmp_path, "optim.critic.lr=1e-3,1e-4", "pbt", kimg=3.072, every_kimg=1.024)
    trial, told = sweep.trials[0], []
    train_to(sweep.run_config(trial.settings), sweep.path / trial.name, sweep.milestones[1], cpus=1, gpus=0)
    first = {"images": sweep.milestones[0], "value": 1.0, "settings": trial.settings, "copied_from": None}
    trial.scores.append(first)  # all that the sweep knows
    run_trial(sweep, trial, trial.settings, trial.name, told.append)
    assert [report["images"] for report in told] == sweep.milestones[1:]


def test_a_trial_that_copies_one_which_has_come_to_its_end_trains_the_last_stretch_with_its_own_settings(tmp_path):
    sweep = two_trials(tmp_path, "optim.critic.lr=1e-3,1e-4", "pbt", kimg=3.072, every_kimg=1.024)
    (donor, trial), told = sweep.trials, []
    run_trial(sweep, donor, donor.settings, None, lambda report: None)
    train_to(sweep.run_config(trial.settings), sweep.path / trial.name, sweep.milestones[0], cpus=1, gpus=0)
    run_trial(sweep, trial, trial.settings, donor.name, told.append)
    assert [(report["images"], report["copied_from"]) for report in told] == [(sweep.milestones[-1], donor.name)]
    run = load(sweep.path / trial.name)
    assert run.config.optim.critic.lr == float(trial.settings["optim.critic.lr"])
    assert value_of(run, sweep.objective) == told[0]["score"]
