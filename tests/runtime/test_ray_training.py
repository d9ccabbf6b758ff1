"""Training under a local Ray: the same run with one and two workers, failures, and what comes back from workers."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import threading
import time

import pytest
import torch
from tiny_runs import descendants, tiny_config

from ganscale.errors import DataError, RunFailed
from ganscale.runtime import launch, train
from ganscale.runtime.listening import ray_listeners
from ganscale.runtime.local import ray_session
from ganscale.runtime.train import translate
from ganscale.training.process_group import solo_group
from ganscale.training.state import TrainState

pytestmark = pytest.mark.ray
PATIENCE_S = 100  # only where all else fails
LAST = 1024  # images; long enough for a worker to be killed on the way


def longer():
    return tiny_config(train__kimg=LAST / 1000, train__batch=16, checkpoint__keep=4)


@pytest.fixture(scope="module", autouse=True)
def shared_ray():
    """One local Ray for the module: a launch uses the connection that is there."""
    before, at_sigterm = descendants(os.getpid()), signal.getsignal(signal.SIGTERM)
    with ray_session(cpus=2, gpus=0):
        yield
    assert descendants(os.getpid()) <= before, "Ray left processes behind"
    assert signal.getsignal(signal.SIGTERM) is at_sigterm


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Give the run of so many workers, trained once."""
    root = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda n: launch(longer(), name=f"workers-{n}", runs_dir=root, workers=n))


def weights(run):
    parts = run.checkpoint().parts
    return {f"{part}/{name}": value for part in ("generator", "critic", "ema") for name, value in parts[part].items()}


def weights_at_the_start():
    nets = TrainState(longer(), solo_group("cpu")).nets
    return {f"{part}/{name}": value for part, net in nets.items() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_leave_the_same_directory_as_a_run_without_ray(trained, workers):
    def listing(run):
        return sorted(
            path.relative_to(run.path) for path in run.path.rglob("*") if not path.name.startswith("events.out")
        )

    assert listing(trained(workers)) == listing(trained(0))
    placement = json.loads((trained(workers).path / "config.json").read_text())["placement"]
    assert (placement["workers"], placement["backend"]) == (workers, "gloo")


def test_one_worker_under_ray_has_the_bits_of_a_run_without_ray(trained):
    assert all(torch.equal(value, weights(trained(0))[name]) for name, value in weights(trained(1)).items())


def test_two_workers_train_the_weights_of_one(trained):
    one, two, begun = weights(trained(1)), weights(trained(2)), weights_at_the_start()
    for name, value in one.items():
        # Gradients summed in another order differ by 1e-7 of their size. Adam makes of that a share of its step where a
        # gradient is near zero, and 64 steps of two networks that answer each other enlarge it: a tensor ends about one
        # per cent of its way apart. Ranks that did not exchange gradients, or not all of them, end a whole way apart.
        learned, apart = (value - begun[name]).double().norm(), (two[name] - value).double().norm()
        assert apart <= 0.05 * learned, f"{name}: {apart:.2g} apart after {learned:.2g} on the way"


def test_a_mistake_that_only_a_worker_meets_comes_back_as_itself_after_one_start(tmp_path, monkeypatch):
    picture = tmp_path / "data"
    picture.mkdir()
    # the driver's look at the data is skipped, as if the folder existed there but not on the workers' node
    monkeypatch.setattr("ganscale.runtime.launcher._preflight", lambda config, run_dir: _NoData())
    starts = tmp_path / "starts"

    def counted(settings):
        from ganscale.runtime.worker import run_rank

        with starts.open("a") as stream:
            stream.write("x")
        return run_rank(settings)

    monkeypatch.setattr("ganscale.runtime.train.worker_loop", counted)
    with pytest.raises(DataError) as caught:
        launch(tiny_config(data__path=str(picture)), name="x", runs_dir=tmp_path / "runs", workers=1)
    assert str(picture) in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "runs" / "x").exists()  # nothing was trained, nothing is left
    assert starts.read_text() == "x"


class _NoData:
    name, fingerprint, num_files, quarantine = "none", "", 0, ()


def test_sigterm_ends_what_uses_ray_as_ctrl_c_does_where_nobody_else_listens_to_it():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_nobody_but_this_machine_reaches_the_dashboard_of_a_ray_of_ours():
    from ray._private.worker import _global_node

    port = int(_global_node.webui_url.rpartition(":")[2])
    assert {one.host for one in ray_listeners() if one.port == port} == {"127.0.0.1"}


def test_a_run_that_no_worker_joins_in_time_ends_with_what_is_missing_and_holds_no_place_in_a_ray_that_lives(tmp_path):
    long = tiny_config(runtime__max_wait_s=0.05, train__kimg=1000)
    with pytest.raises(RunFailed, match=r"1 worker did not start within 0\.05 s: each needs .* CPUs"):
        launch(long, name="late", runs_dir=tmp_path, workers=1)
    # a thread that waits in a Ray that ends brings its process down
    assert "ray_fit" not in {thread.name for thread in threading.enumerate()}
    wait_until_free()


def test_a_controller_that_is_killed_while_workers_start_leaves_no_place_held_in_a_ray_that_lives(
    tmp_path, monkeypatch
):
    import ray

    held = []

    def give_up_once_places_are_held(_):
        held[:] = [one for one in ray.util.placement_group_table().values() if one["state"] == "CREATED"]
        if held:
            raise RunFailed("enough")

    wait_until_free()
    monkeypatch.setattr(train.Attendance, "check", give_up_once_places_are_held)
    monkeypatch.setattr(train, "ABORT_S", 0.5)  # less than a start takes, in which a controller hears nothing
    with pytest.raises(RunFailed, match="enough"):
        launch(tiny_config(), name="killed", runs_dir=tmp_path, workers=1)
    assert held
    wait_until_free()


def wait_until_free():
    deadline = time.monotonic() + PATIENCE_S
    while (held := alive("RayTrainWorker") + alive("Controller")) or free_cpus() < 2:
        assert time.monotonic() < deadline, held


def free_cpus() -> float:
    """Return how many nobody holds; where all are held Ray leaves the entry out."""
    import ray

    return ray.available_resources().get("CPU", 0)


def alive(kind):
    """Return the actors of a class that have not ended."""
    import ray

    actors = ray._private.state.actors().values()
    return [one for one in actors if one["State"] != "DEAD" and kind in one["ActorClassName"]]


def test_a_process_that_ray_ended_for_lack_of_memory_is_named_as_that_and_not_by_rays_advice(tmp_path):
    from ray.exceptions import OutOfMemoryError

    advice = "Refer to the documentation on how to address the out of memory issue: https://... Set max_restarts ..."
    error = translate(OutOfMemoryError(f"Task was killed due to the node running low on memory.\n{advice}"), tmp_path)
    assert isinstance(error, RunFailed)
    assert "a machine's memory was full; lower train.batch" in str(error)
    assert "\n" not in str(error)


def test_a_disk_that_is_full_for_ray_itself_is_named_as_that(tmp_path):
    from ray.train import ControllerError

    error = translate(ControllerError(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), tmp_path / "run")
    assert str(error).startswith(f"no space left on the disk of {tmp_path / 'run'}; free some")
