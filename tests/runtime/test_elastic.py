"""How many workers an elastic run asks for, and when: decisions on stated resources, without a cluster."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from ganscale.runtime.jobs import launch_words

pytestmark = pytest.mark.distributed
ONE = {"CPU": 1.0}


@pytest.fixture
def cluster(monkeypatch) -> SimpleNamespace:
    """What nodes have and what is free on them, which a test changes; no pause is made."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # as a launch does before it imports Ray
    from ganscale.runtime import elastic

    two = {"CPU": 2.0}
    there = SimpleNamespace(has={"a": two, "b": two}, free={"a": two, "b": two}, drains=set())
    monkeypatch.setattr(elastic.ElasticPolicy, "_maybe_send_resource_request", lambda self: None)
    monkeypatch.setattr(elastic.ElasticPolicy, "_get_reserved_resources", lambda self: there.has)
    monkeypatch.setattr(elastic, "free_per_node", lambda: there.free)
    monkeypatch.setattr(elastic, "draining_nodes", lambda: there.drains)
    monkeypatch.setattr(elastic, "LOOK_S", 0.0)
    return there


def policy(least: int = 1, most: int = 4, resize_s: float = 0.0):
    from ray.train import ScalingConfig

    from ganscale.runtime.elastic import ElasticPolicy

    config = ScalingConfig(
        num_workers=(least, most), resources_per_worker=ONE, elastic_resize_monitor_interval_s=resize_s
    )
    return ElasticPolicy(config)


def running(one, workers: int, checkpoint: str | None, age_s: float = 100.0) -> int | None:
    """Return the size that a group of so many is to have after a poll that brings ``checkpoint``; None: no change."""
    report = None if checkpoint is None else SimpleNamespace(metrics={"checkpoint": checkpoint})
    state = SimpleNamespace(num_workers=workers, start_time=time.monotonic() - age_s)
    status = SimpleNamespace(worker_statuses={0: SimpleNamespace(training_report=report)})
    return size(one.make_decision_for_running_worker_group(state, status))


def size(decision) -> int | None:
    return getattr(decision, "num_workers", None)  # what changes nothing has none


@pytest.mark.parametrize(
    ("least", "most", "free", "found"),
    [
        (1, 4, (2, 2), 4),
        (1, 3, (2, 2), 3),
        (1, 4, (1, 2), 3),  # one is held by somebody else
        (3, 4, (1, 1), None),  # fewer than the fewest
    ],
)
def test_a_run_starts_with_as_many_as_find_a_place(cluster, least, most, free, found):
    cluster.free = {name: {"CPU": float(count)} for name, count in zip("ab", free, strict=True)}
    assert size(policy(least, most).make_decision_for_non_running_worker_group()) == found


def test_nobody_is_sent_to_a_node_that_drains(cluster):
    cluster.drains = {"b"}
    assert size(policy().make_decision_for_non_running_worker_group()) == 2
    assert size(policy(least=3).make_decision_for_non_running_worker_group()) is None


def test_what_a_draining_node_has_free_makes_up_for_nothing_that_others_hold(cluster):
    one = policy()
    size(one.make_decision_for_non_running_worker_group())  # from here on what is free counts
    cluster.drains, cluster.free = {"b"}, {"a": {"CPU": 1.0}, "b": {"CPU": 2.0}}
    assert size(one.make_decision_for_non_running_worker_group()) == 1


def test_after_a_loss_the_places_of_the_lost_group_count_as_ours(cluster):
    one = policy()
    assert running(one, 4, None) is None
    del cluster.has["b"]  # a node is gone; two survivors still hold the places on the other
    cluster.free = {"a": {"CPU": 0.0}}
    assert size(one.make_decision_for_non_running_worker_group()) == 2


def test_a_start_that_failed_is_tried_with_what_is_free(cluster):
    one = policy()
    running(one, 4, None)
    cluster.free = {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}}
    assert size(one.make_decision_for_non_running_worker_group()) == 4  # the lost group may hold the fourth
    assert size(one.make_decision_for_non_running_worker_group()) == 3  # it does not, as it is shut down by now


def test_a_group_grows_on_the_report_of_a_new_checkpoint_only(cluster):
    one = policy()
    cluster.free = {"a": {"CPU": 0.0}, "b": {"CPU": 2.0}}
    assert [running(one, 2, checkpoint) for checkpoint in (None, "", "kimg-1", "kimg-1", "kimg-2")] == [
        None,
        None,
        4,
        None,
        4,
    ]


def test_a_group_does_not_grow_into_what_others_hold(cluster):
    cluster.free = {"a": {"CPU": 0.0}, "b": {"CPU": 1.0}}
    assert running(policy(), 2, "kimg-1") == 3
    cluster.free = {"a": {"CPU": 0.0}, "b": {"CPU": 0.0}}
    assert running(policy(), 2, "kimg-1") is None


def test_two_changes_are_apart(cluster):
    cluster.free = {"a": {"CPU": 0.0}, "b": {"CPU": 2.0}}
    assert running(policy(resize_s=30), 2, "kimg-1", age_s=20) is None
    assert running(policy(resize_s=30), 2, "kimg-1", age_s=31) == 4


def test_a_job_asks_for_the_same_range():
    words = launch_words({"workers": "1:4", "gpus": None, "settings": ()})
    assert words == ["ganscale", "launch", "--address", "auto", "--workers", "1:4"]
