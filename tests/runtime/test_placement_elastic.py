"""Placement of a run whose number of workers may change: the fewest have to fit, the most may come later."""

from __future__ import annotations

import pytest

from ganscale.config import RunConfig, override
from ganscale.errors import ConfigError, ResourceError, UserError
from ganscale.runtime.estimate import estimate
from ganscale.runtime.placement import Resources, place, read_count

pytestmark = pytest.mark.distributed
LAPTOP = Resources(cpus=4, gpus=0, memory_bytes=8 << 30, where="this machine")
BOX = Resources(cpus=64, gpus=8, memory_bytes=512 << 30, where="this machine")
CONFIG = RunConfig()  # batch 64


def cluster(*nodes: tuple[int, int]) -> Resources:
    cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
    return Resources(cpus=cpus, gpus=gpus, memory_bytes=None, where="the cluster", nodes=nodes)


@pytest.mark.parametrize(
    ("value", "found"), [(3, (3, 3)), ("3", (3, 3)), (0, (0, 0)), ("1:4", (1, 4)), ((1, 4), (1, 4)), ("2:2", (2, 2))]
)
def test_a_count_is_a_number_or_a_range(value, found):
    assert read_count(value) == found


@pytest.mark.parametrize("value", ["", "four", "4:", ":4", "4:1", "0:4", "1:2:3", -1, "-1", None, (1, 2, 3), ("a", 2)])
def test_what_is_no_count_is_refused_with_an_example(value):
    with pytest.raises(UserError, match=r"^--gpus must be a whole number of at least 0, or MIN:MAX .*; for example"):
        read_count(value, "--gpus")


def test_a_least_number_is_asked_of_a_single_count_alone():
    with pytest.raises(UserError, match="of at least 2"):
        read_count("1", least=2)
    assert read_count("1:2", least=2) == (1, 2)


@pytest.mark.parametrize(
    ("resources", "asked", "least", "most", "device", "threads", "share"),
    [
        (LAPTOP, {"workers": "1:4"}, 1, 4, "cpu", 1, 64),
        (LAPTOP, {"workers": (1, 2)}, 1, 2, "cpu", 2, 64),
        (LAPTOP, {"workers": (3, 4)}, 3, 4, "cpu", 1, 22),  # 64 over 3 workers: 21, 21, 22
        (LAPTOP, {"workers": "2:2"}, 2, 2, "cpu", 2, 32),
        (BOX, {"gpus": "2:8"}, 2, 8, "cuda", 8, 32),
        (BOX, {"workers": "2:8"}, 2, 8, "cuda", 8, 32),
        (BOX, {"workers": "2:8", "gpus": "2:8"}, 2, 8, "cuda", 8, 32),
        (BOX, {"workers": "2:16"}, 2, 16, "cpu", 4, 32),  # eight GPUs, which stay eight
        (cluster((4, 4), (4, 4)), {"workers": "1:8"}, 1, 8, "cuda", 1, 64),
        (cluster((4, 4), (4, 4)), {"gpus": "1:16"}, 1, 16, "cuda", 1, 64),  # eight now, eight more may come
        (
            cluster(
                (8, 0),
            ),
            {"workers": "1:4"},
            1,
            4,
            "cpu",
            2,
            64,
        ),
        (
            cluster(
                (2, 0),
            ),
            {"workers": "1:8"},
            1,
            8,
            "cpu",
            1,
            64,
        ),
        (cluster((4, 0), (4, 0)), {"workers": "1:2"}, 1, 2, "cpu", 4, 64),  # a node each
    ],
)
def test_elastic_placement(resources, asked, least, most, device, threads, share):
    plan = place(CONFIG, resources, **asked)
    assert (plan.least, plan.workers, plan.device) == (least, most, device)
    assert (plan.threads, plan.batch_per_worker) == (threads, share)
    assert plan.is_elastic == (least < most)


@pytest.mark.parametrize(
    ("resources", "asked", "words"),
    [
        (cluster((2, 0), (2, 0)), {"workers": "5:8"}, ["--workers must be at most 4", "got 5:8", "--workers 4"]),
        (cluster((8, 2), (8, 2)), {"gpus": "5:8"}, ["--gpus must be at most 4", "got 5:8", "--gpus 4"]),
        (cluster((8, 8), (1, 1)), {"gpus": "1:8", "workers": 2}, ["--workers must be 1:8", "got 2"]),
        (
            cluster(
                (8, 0),
            ),
            {"cpus": 2, "workers": "1:4"},
            ["--workers must be at most --cpus 2", "got 1:4"],
        ),
        (cluster((1, 8), (64, 0)), {"gpus": "2:8"}, ["must be at most 1", "a GPU and a core", "got 2", "--gpus 1"]),
    ],
)
def test_a_range_whose_fewest_find_no_place_is_refused(resources, asked, words):
    with pytest.raises(ResourceError) as caught:
        place(CONFIG, resources, **asked)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_batch_with_less_than_an_image_for_each_worker_is_refused():
    with pytest.raises(ConfigError, match=r"train\.batch must hold an image for each of the 4 workers, got 3; .*1:3"):
        place(override(CONFIG, {"train.batch": 3}), LAPTOP, workers="1:4")


def test_memory_is_that_of_a_worker_among_the_fewest():
    elastic, fewest, most = (estimate(CONFIG, place(CONFIG, LAPTOP, workers=w), measure=False) for w in ("2:4", 2, 4))
    assert elastic.memory_bytes == fewest.memory_bytes > most.memory_bytes


def test_an_elastic_plan_says_so_in_words():
    plan = place(CONFIG, LAPTOP, workers="3:4")
    lines = plan.lines()
    assert lines["workers"].startswith("3 to 4 under Ray on this machine")
    assert lines["batch"] == "16 to 22 images a worker, 64 in all"
    assert plan.as_dict()["least"] == 3
