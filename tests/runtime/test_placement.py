"""Placement is a pure function of config and resources: tables, no device touched."""

from __future__ import annotations

import pytest

from ganscale.config import RunConfig, override
from ganscale.errors import ConfigError, ResourceError
from ganscale.runtime.placement import Resources, place

pytestmark = pytest.mark.distributed
LAPTOP = Resources(cpus=4, gpus=0, memory_bytes=8 << 30, where="this machine")
BOX = Resources(cpus=64, gpus=8, memory_bytes=512 << 30, where="this machine")
CONFIG = RunConfig()  # batch 64


@pytest.mark.parametrize(
    ("resources", "asked", "workers", "device", "backend", "threads", "share"),
    [
        (LAPTOP, {}, 1, "cpu", "gloo", 4, 64),
        (LAPTOP, {"workers": 2}, 2, "cpu", "gloo", 2, 32),
        (LAPTOP, {"workers": 0}, 0, "cpu", "none", 4, 64),
        (LAPTOP, {"workers": 2, "cpus": 2}, 2, "cpu", "gloo", 1, 32),
        (BOX, {}, 1, "cuda", "nccl", 8, 64),
        (BOX, {"workers": 0}, 0, "cuda", "none", 8, 64),
        (BOX, {"gpus": 8}, 8, "cuda", "nccl", 8, 8),
        (BOX, {"gpus": 0}, 1, "cpu", "gloo", 64, 64),
        (BOX, {"cpus": 16, "workers": 2}, 2, "cpu", "gloo", 8, 32),
        (BOX, {"workers": 16}, 16, "cpu", "gloo", 4, 4),
    ],
)
def test_placement_follows_from_what_is_asked_and_what_there_is(
    resources, asked, workers, device, backend, threads, share
):
    plan = place(CONFIG, resources, **asked)
    assert (plan.workers, plan.device, plan.backend) == (workers, device, backend)
    assert (plan.threads, plan.batch_per_worker) == (threads, share)
    assert plan.gpus_per_worker == (device == "cuda")


def test_omp_num_threads_limits_the_threads():
    limited = Resources(cpus=4, gpus=0, memory_bytes=None, where="this machine", threads_limit=1)
    assert place(CONFIG, limited).threads == 1


@pytest.mark.parametrize(
    ("resources", "asked", "words"),
    [
        (LAPTOP, {"gpus": 8}, ["--gpus must be at most 0, got 8", "no GPUs and 4 CPU cores", "--workers 4"]),
        (BOX, {"gpus": 9}, ["--gpus must be at most 8, got 9", "8 GPUs", "--gpus 8"]),
        (LAPTOP, {"workers": 5}, ["--workers must be at most 4", "got 5", "--workers 4"]),
        (LAPTOP, {"cpus": 5}, ["--cpus must be 1 to 4", "got 5"]),
        (LAPTOP, {"cpus": 1, "workers": 2}, ["--workers must be at most --cpus 1", "got 2"]),
        (BOX, {"gpus": 4, "workers": 2}, ["--workers must be 4", "got 2"]),
        (BOX, {"gpus": 2, "cpus": 4}, ["--cpus must be left out beside --gpus"]),
        (LAPTOP, {"workers": (2, 5)}, ["--workers must be at most 4", "got 2:5", "--workers 2:4"]),
        (BOX, {"gpus": "2:9"}, ["--gpus must be at most 8, got 2:9"]),
    ],
)
def test_more_than_there_is_is_refused_in_one_line_with_what_would_work(resources, asked, words):
    with pytest.raises(ResourceError) as caught:
        place(CONFIG, resources, **asked)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("batch", "near"), [(64, "63 or 66"), (2, "3"), (100, "99 or 102")])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(batch, near):
    with pytest.raises(ConfigError, match=rf"train\.batch must be divisible by the 3 workers, got {batch}; .*={near}$"):
        place(override(CONFIG, {"train.batch": batch}), LAPTOP, workers=3)


def test_a_plan_is_plain_data_and_words():
    plan = place(CONFIG, BOX, gpus=2)
    assert plan.as_dict()["workers"] == 2
    assert plan.ray_resources == {"CPU": 8, "GPU": 1}
    assert "2 under Ray" in plan.lines()["workers"]
    assert "nothing to exchange" not in plan.lines()["workers"]


def test_a_single_worker_is_not_said_to_sum_anything():
    assert place(CONFIG, LAPTOP, workers=1).lines()["workers"].endswith("nothing to exchange")
