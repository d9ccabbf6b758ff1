"""Faults that only show in what is said or where ranks meet: a kill over gloo, a damaged checkpoint, a NaN on one rank.

The workers do it to themselves at a given image, so that nothing depends on how fast they are.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_runs import descendants, write_pictures

from benchmarks import faults
from ganscale.cli import main
from ganscale.config import RunConfig, override
from ganscale.errors import RunFailed
from ganscale.presets import preset
from ganscale.runtime import Run, launch, load
from ganscale.runtime.local import ray_session

pytestmark = pytest.mark.ray
LAST, FAULT = 512, 320  # images; checkpoints are made every 128
SETTINGS = faults.SETTINGS | {"train.kimg": LAST / 1000, "runtime.hang_timeout_s": 300}  # nobody hangs here
Act = Callable[[int, Any, Path], None]


@pytest.fixture(scope="module", autouse=True)
def shared_ray() -> Iterator[None]:
    """One local Ray for the module."""
    before = descendants(os.getpid())
    with ray_session(cpus=2, gpus=0):
        yield
    assert descendants(os.getpid()) <= before, "Ray left processes behind"


def config() -> RunConfig:
    return override(preset("dcgan-fashion"), SETTINGS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody disturbs; it sums in shared memory."""
    return launch(config(), name="alone", runs_dir=tmp_path_factory.mktemp("runs"), workers=2)


def workers_that(act: Act, *, over_gloo: bool = False) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a loop of workers that call ``act(rank, step, run_dir)`` in the critic's phases from ``FAULT`` on."""
    begin = FAULT  # a worker gets this function by value, and nothing of this module

    def loop(settings: dict[str, Any]) -> dict[str, Any]:
        from pathlib import Path

        import ray.train

        from ganscale.ops import shared_sum
        from ganscale.runtime import worker
        from ganscale.training import trainer

        rank, leave, join = ray.train.get_context().get_world_rank(), trainer.leave_gradients, worker.torch_group

        def leave_and_act(phase, step):
            leave(phase, step)
            if phase.name == "critic" and step.state.images >= begin:
                act(rank, step, Path(settings["run_dir"]))

        def join_over_gloo(*arguments, **options):
            group = join(*arguments, **options)
            assert group.shared is None
            return group

        trainer.leave_gradients = leave_and_act
        if over_gloo:
            shared_sum.MEMORY = Path("/nowhere")  # as on several machines: there is no memory that all of them have
            worker.torch_group = join_over_gloo
        return worker.run_rank(settings)

    return loop


def test_a_worker_that_dies_in_an_exchange_over_gloo_is_replaced_and_the_end_is_that_of_a_run_left_alone(
    alone, tmp_path, monkeypatch
):
    def die_once(rank, step, run_dir):
        import os
        import signal

        mark = run_dir / ".died"
        if rank == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("ganscale.runtime.train.worker_loop", workers_that(die_once, over_gloo=True))
    run = launch(config(), name="x", runs_dir=tmp_path, workers=2)
    (restart,) = faults.restarts(run.path)
    # where the survivor raises first, its words are all that is known
    told = r"worker 1 was lost \(Worker|\w+: .*Connection (closed|reset) by peer.*\(worker 0\)$"
    assert re.match(told, restart["why"]), restart["why"]
    # sums of two are the same in either order, so of shared memory and gloo as well
    assert faults.differences(run, alone) == []


def test_a_newest_checkpoint_that_is_damaged_is_passed_over_aloud_and_the_end_is_that_of_a_run_left_alone(
    alone, tmp_path, monkeypatch, caplog
):
    def cut_and_die_once(rank, step, run_dir):
        import os
        import signal
        import threading

        newest, mark = run_dir / "checkpoints" / "kimg-000000.256", run_dir / ".died"
        if rank == 0 and not mark.exists():
            while not newest.exists():  # a thread of this process is writing it
                threading.Event().wait(0.01)
            mark.touch()
            os.truncate(newest / "critic.safetensors", 100)
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("ganscale.runtime.train.worker_loop", workers_that(cut_and_die_once))
    with caplog.at_level(logging.WARNING, logger="ganscale"):
        run = launch(config(), name="x", runs_dir=tmp_path, workers=2)
    (restart,) = faults.restarts(run.path)
    (damaged,) = restart["damaged"]
    cut = run.path / "checkpoints" / "kimg-000000.256" / "critic.safetensors"
    assert damaged.startswith(f"{cut} must have ")
    assert damaged.endswith("bytes, got 100")
    assert f"a damaged checkpoint was passed over: {damaged}" in caplog.text
    assert restart["went_on_from"] == 128
    assert faults.differences(run, alone) == []


def test_a_nan_on_one_worker_ends_the_launch_with_1_and_its_rank_and_is_not_tried_again(tmp_path, monkeypatch):
    def spoil(rank, step, run_dir):
        if rank == 1:
            next(step.state.nets["critic"].parameters()).grad.view(-1)[0] = float("nan")

    monkeypatch.setattr("ganscale.runtime.train.worker_loop", workers_that(spoil))
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = ["launch", "--preset", "dcgan-fashion", "--workers", "2", "--name", "x", "--runs-dir", str(tmp_path)]
    done = CliRunner().invoke(main, [*command, *words])
    assert done.exit_code == 1, (done.output, done.exception)
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: ")
    assert f"is not finite in phase critic at {FAULT} images; " in last
    assert "; it arose on worker 1; " in last
    assert "go on with ganscale launch --resume" in last
    assert faults.restarts(tmp_path / "x") == []
    assert len(list((tmp_path / "x" / "tensorboard").glob("events*"))) == 1  # a file a start


def test_a_run_that_is_started_again_where_the_data_lack_ends_as_one_that_failed_with_what_is_saved(
    tmp_path, monkeypatch
):
    """As on a node without the mount, in the place of a lost one. At the first start it is a mistake of the user's."""

    def lose_the_data_and_die(rank, step, run_dir):
        import os
        import signal

        (run_dir.parent / "data").rename(run_dir.parent / "elsewhere")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("ganscale.runtime.train.worker_loop", workers_that(lose_the_data_and_die))
    write_pictures(tmp_path / "data", 64)
    pictures = override(config(), {"data.path": str(tmp_path / "data"), "data.resolution": 16})
    with pytest.raises(RunFailed) as caught:
        launch(pictures, name="x", runs_dir=tmp_path, workers=1)
    words = str(caught.value)
    assert words.startswith(f"--data {tmp_path / 'data'} must be there on all nodes, got nothing on node "), words
    saved = load(tmp_path / "x").checkpoint().path.name
    assert words.endswith(f"; saved {saved}; go on with ganscale launch --resume {tmp_path / 'x'}")
    assert caught.value.exit_code == 1
