"""An object store that fails now and then, or answers late, costs a run nothing."""

from __future__ import annotations

import json
import random
import threading
import uuid
from contextlib import nullcontext

import pytest
from stores import BUCKET
from tiny_runs import tiny_config

from ganscale.runtime import launch
from ganscale.runtime.local import ray_session
from ganscale.runtime.mirror import Mirror
from ganscale.runtime.storage import ObjectStore
from ganscale.runtime.watch import RESTARTS

pytestmark = pytest.mark.distributed
PATIENCE_S = 100
FAILING = 0.2  # of all requests


@pytest.fixture
def runs(address, machine, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the runs of this test are kept; what is new is sent at once, and tried again soon."""
    monkeypatch.setitem(Mirror.__init__.__kwdefaults__, "every_s", 0.02)
    monkeypatch.setitem(ObjectStore.__init__.__kwdefaults__, "first_wait_s", 0.02)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def manifest(run) -> dict:
    return json.loads((run.checkpoint().path / "manifest.json").read_text())["files"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_a_store_that_fails_every_fifth_request_and_answers_late_changes_nothing_and_stops_nobody(
    server, runs, through, tmp_path, workers
):
    draw, ended, waited = random.Random(0), threading.Event(), []

    def fails(number: int, method: str, path: str) -> int | None:
        if "/checkpoints/" in path and method == "PUT":  # no checkpoint gets there while training goes on
            waited.append(ended.wait(PATIENCE_S))
        return draw.choice([500, 503]) if draw.random() < FAILING else None

    proxy = through(fails)
    last = 512

    def on_tick(tick: dict) -> None:
        if tick["images"] == last:
            ended.set()

    with ray_session(cpus=2, gpus=0) if workers else nullcontext():
        run = launch(tiny_config(), name="x", runs_dir=runs, workers=workers, on_tick=on_tick)
        alone = launch(tiny_config(), name="alone", runs_dir=tmp_path, workers=workers)
    assert waited
    assert all(waited), "training has waited for the store"
    assert len(proxy.requests) > 40
    assert manifest(run) == manifest(alone)
    assert not (run.path / RESTARTS).exists()
    prefix = f"{runs.removeprefix(f's3://{BUCKET}/')}/x/checkpoints/{run.checkpoint().path.name}/"
    stored = server.objects(prefix)
    assert {key.removeprefix(prefix): size for key, size in stored.items() if not key.endswith("manifest.json")} == {
        name: facts["bytes"] for name, facts in manifest(run).items()
    }
