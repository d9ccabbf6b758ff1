"""A sweep before it starts: what may be varied, what is drawn, when it is scored, which trial is best. No Ray."""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

import ganscale
from ganscale import runtime
from ganscale.cli import main
from ganscale.cli.tune import next_command, rows_of
from ganscale.config import ScoreName, override
from ganscale.errors import ConfigError, ResourceError, UserError
from ganscale.presets import preset
from ganscale.runtime.placement import Resources
from ganscale.runtime.sweep import DONE, FAILED, OBJECTIVES, STOPPED, read_sweep
from ganscale.runtime.sweep_space import check_params, draw_trials, milestones, parse_param
from ganscale.runtime.tune import plan_sweep, restart, tune

pytestmark = pytest.mark.distributed
POINTS = preset("r3gan-gaussians")
HERE = Resources(cpus=4, gpus=0, memory_bytes=None, where="this machine")
LR, WIDTH = "optim.critic.lr=log:1e-5:1e-3", "model.width=16,32,64"


def planned(tmp_path, *params, config=POINTS, resources=HERE, **asked):
    """Return a sweep as ``ganscale tune`` would begin it."""
    defaults = {"trials": 4, "scheduler": "asha", "every_kimg": None, "objective": None, "workers": None}
    where = {"name": "s", "runs_dir": tmp_path}
    config = override(config, {"train.kimg": asked.pop("kimg", 90)})
    return plan_sweep(config, params or (LR, WIDTH), resources=resources, **(defaults | where | asked))


@pytest.mark.parametrize("text", [LR, "penalty.weight=uniform:0:2", "optim.critic.repeats=int:1:5", WIDTH])
def test_every_drawn_value_is_inside_and_can_be_run(text):
    param = parse_param(text)
    rng = np.random.default_rng(0)
    drawn = [param.draw(rng) for _ in range(300)]
    for value in drawn:
        override(POINTS, {param.key: value})
        assert value in param.choices if param.kind == "choice" else param.low <= value <= param.high
    if param.kind == "log":  # half of the draws below the geometric middle; 300 of them miss .5 by .15 once in 10^6
        assert abs(np.mean([value < math.sqrt(param.low * param.high) for value in drawn]) - 0.5) < 0.15
    if param.kind == "int":
        assert set(drawn) == {1, 2, 3, 4, 5}


def test_a_trial_depends_on_the_seed_and_its_number_alone():
    params = [parse_param(LR), parse_param(WIDTH)]
    assert draw_trials(params, 3, seed=1) == draw_trials(params, 9, seed=1)[:3]
    assert draw_trials(params, 3, seed=1) != draw_trials(params, 3, seed=2)


def test_a_grid_of_choices_is_tried_wholly_before_anything_comes_again():
    params = [parse_param(WIDTH), parse_param("optim.generator.betas=0.0,0.9|0.5,0.9")]
    drawn = draw_trials(params, 13, seed=5)
    assert len({json.dumps(settings) for settings in drawn[:6]}) == 6
    # the same numbers are not trained twice: each time round has a seed of its own
    assert drawn[6:12] == [settings | {"train.seed": 6} for settings in drawn[:6]]
    assert drawn[12] == drawn[0] | {"train.seed": 7}


def test_a_whole_number_that_is_drawn_twice_is_trained_with_another_seed():
    drawn = draw_trials([parse_param("optim.critic.repeats=int:1:2")], 9, seed=0)
    assert len({json.dumps(settings) for settings in drawn}) == 9


def test_a_grid_is_tried_once_and_an_interval_eight_times_unless_said_otherwise(tmp_path):
    grid = planned(tmp_path, "penalty.weight=1,10", trials=None)
    assert sorted(trial.settings["penalty.weight"] for trial in grid.trials) == ["1", "10"]
    assert len(planned(tmp_path, LR, trials=None).trials) == 8
    more = planned(tmp_path, "penalty.weight=1,10", trials=4)
    assert len({more.run_config(trial.settings).model_dump_json() for trial in more.trials}) == 4
    assert rows_of(more)[0][-1] == "train.seed"
    with pytest.raises(UserError, match=r"--trials must be at most 2, the combinations, where train\.seed is varied"):
        planned(tmp_path, "train.seed=1,2", trials=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.critic.lr", "be written KEY=VALUES"),
        ("optim.critic.lr=", "be written KEY=VALUES"),
        ("optim.critic.lr=log:1e-3:1e-5", "0 < LOW < HIGH after log:"),
        ("optim.critic.lr=log:0:1", "0 < LOW < HIGH after log:"),
        ("optim.critic.lr=uniform:1", "LOW < HIGH after uniform:"),
        ("optim.critic.lr=uniform:1:nan", "LOW < HIGH after uniform:"),
        ("optim.critic.lr=int:1.5:3", "two whole numbers"),
        ("optim.critic.lr=normal:0:1", "begin with log:, uniform: or int:"),
        ("optim.critic.lr=1e-3", "have at least two values"),
        ("optim.critic.lr=1e-3,1e-3", "have at least two values"),
        ("optim.critic.rl=1e-3,1e-4", "did you mean optim.critic.lr"),
        ("optim.critic.lr=log:1e-5:1e999", "0 < LOW < HIGH after log:"),
        ("penalty.weight=abc,1", "penalty.weight must be a valid number, got abc;"),
        ("train.precision=fp32,fp16", "train.precision must be one of fp32, bf16, got fp16;"),
        ("optim.critic.lr=-1,1", "optim.critic.lr must be greater than 0"),
        ("loss.name=hinge,hinje", "did you mean hinge"),
        ("evaluate.num=500,1000", "name a key that decides what is learned"),
        ("train.kimg=1,2", "name a key that decides what is learned"),
        ("train.cuda_graphs=true,false", "name a key that decides what is learned"),
    ],
)
def test_a_bad_param_is_refused_with_what_would_work(text, words):
    with pytest.raises(UserError) as caught:
        check_params(POINTS, [parse_param(text)], while_training=False)
    assert words in str(caught.value)


@pytest.mark.parametrize(("outside", "engine"), [(ganscale.launch, runtime.launch), (ganscale.tune, tune)])
def test_from_python_a_command_has_the_defaults_of_its_engine(outside, engine):
    ours, theirs = inspect.signature(outside).parameters, inspect.signature(engine).parameters
    common = ours.keys() & theirs.keys() - {"params"}
    assert len(common) >= 8
    assert {name: ours[name].default for name in common} == {name: theirs[name].default for name in common}


def test_population_based_training_changes_only_what_a_run_may_change_on_its_way():
    check_params(POINTS, [parse_param(LR)], while_training=True)
    with pytest.raises(ConfigError, match=r"with pbt be one of .*got model\.width; use --scheduler asha"):
        check_params(POINTS, [parse_param(WIDTH)], while_training=True)


@pytest.mark.parametrize(
    ("scheduler", "first", "found"),
    [("asha", 10, [10, 30, 90]), ("asha", 90, [90]), ("asha", 40, [40, 90]), ("pbt", 30, [30, 60, 90])],
)
def test_trials_are_scored_at_their_milestones_and_at_the_end(scheduler, first, found):
    assert milestones(90, first, scheduler=scheduler, factor=3) == found


def test_no_milestone_falls_on_the_step_of_the_last():
    assert milestones(2000, 222, scheduler="asha", factor=3, batch=64) == [222, 666, 2000]
    assert milestones(2000, 200, scheduler="pbt", factor=3, batch=200) == list(range(200, 2001, 200))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"trials": 0}, "--trials must be at least 1"),
        ({"trials": 1, "scheduler": "pbt"}, "--trials must be at least 2"),
        ({"scheduler": "ahsa"}, "did you mean asha"),
        ({"objective": "fd"}, "--objective must be a known name, got fd"),
        ({"objective": "spread:up"}, "--objective must end in :min or :max"),
        ({"every_kimg": 91}, "--every must be from 0.512 (a batch) to 90"),
        ({"kimg": 1}, "--kimg must be at least 4.608"),
        ({"every_kimg": 0.1}, "--every must be from 0.512"),
        ({"workers": 5}, "--workers must be from 1 to 4, the CPU cores of this machine"),
        ({"runs_dir": "s3://bucket/x"}, "--runs-dir must be a folder"),
        ({"name": "a/b"}, "--name must be a plain directory name"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_with_nothing_written(tmp_path, asked, words):
    with pytest.raises(UserError) as caught:
        planned(tmp_path, **asked)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [("--trials", "0"), ("--param", "optim.critic.rl=1,2"), (), ("--resume", "s"), ("--resume", "s", "--trials", "3")],
)
def test_the_command_refuses_with_exit_2_and_one_line(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, ["tune", "--preset", "r3gan-gaussians", *arguments])
    assert found.exit_code == 2
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith("error: --")
    assert not list(tmp_path.iterdir())


def test_cores_and_gpus_are_shared_among_the_trials_at_a_time(tmp_path):
    def share(resources, **asked):
        found = planned(tmp_path, resources=resources, **asked)
        return found.at_once, found.cpus, found.gpus

    box = Resources(cpus=64, gpus=8, memory_bytes=None, where="this machine")
    assert share(HERE) == (4, 1, 0)
    assert share(HERE, workers=1) == (1, 4, 0)
    assert share(HERE, trials=2) == (2, 2, 0)
    assert share(box, trials=20) == (8, 8, 1)
    with pytest.raises(ResourceError, match="the GPUs of this machine"):
        planned(tmp_path, resources=box, workers=9)


def test_an_objective_knows_its_direction_and_what_it_is_measured_on(tmp_path):
    assert (planned(tmp_path).objective, planned(tmp_path).better) == ("within-4-sigma", "higher")
    assert planned(tmp_path, objective="spread").better == "lower"
    assert planned(tmp_path, objective="spread:max").better == "higher"
    images = planned(tmp_path, "loss.name=hinge,minimax", config=preset("dcgan-fashion"), objective="recall")
    assert "prdc" in images.config.evaluate.metrics
    assert set(ScoreName.__args__) <= set(OBJECTIVES)


def scored(sweep, *scores):
    """Give trial k the scores (images, value) of ``scores[k]``."""
    for trial, found in zip(sweep.trials, scores, strict=True):
        trial.scores = [{"images": images, "value": value, "settings": trial.settings} for images, value in found]
    return sweep


def test_the_best_trial_is_the_best_of_those_that_went_furthest(tmp_path):
    sweep = planned(tmp_path, objective="spread")
    assert sweep.best is None
    scored(sweep, [(10240, 1.0)], [(10240, 4.0), (30208, 3.0)], [(10240, 5.0), (30720, 2.0)], [(90112, 0.0)])
    sweep.trials[3].state = FAILED
    assert sweep.best is sweep.trials[2]  # 30.72 is as far as 30.208: both have passed 30
    sweep.better = "higher"
    assert sweep.best is sweep.trials[1]


def test_what_is_written_is_what_is_read(tmp_path):
    sweep = scored(planned(tmp_path), [(10240, 0.5)], [], [], [])
    sweep.path.mkdir()
    sweep.write()
    again = read_sweep(sweep.path)
    assert again == sweep
    assert json.loads((sweep.path / "sweep.json").read_text())["best"]["trial"] == "trial-000"


def test_a_resumed_sweep_tells_asha_of_all_scores_and_pbt_of_the_living(tmp_path):
    sweep = scored(planned(tmp_path), [(10240, 0.5)], [(10240, 0.1)], [], [])
    sweep.trials[1].state, sweep.trials[3].state = STOPPED, FAILED
    assert restart(sweep) == [0, 1, 2]
    sweep.scheduler = "pbt"
    assert restart(sweep) == [0, 2]


def test_the_table_begins_with_the_best_and_the_command_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = scored(planned(tmp_path), [(10240, 0.5)], [(90112, 0.1)], [(90112, 0.2)], [])
    for trial, state in zip(sweep.trials, (STOPPED, DONE, DONE, FAILED), strict=True):
        trial.state = state
    assert [row[0] for row in rows_of(sweep)] == ["trial", "trial-002", "trial-001", "trial-000", "trial-003"]
    words = next_command(sweep).split()
    assert words == ["ganscale", "launch", "--resume", "s/trial-002", "--kimg", "180"]
    main.commands["launch"].make_context("launch", words[2:])
