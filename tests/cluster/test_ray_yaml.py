"""The files of Ray's cluster launcher, by Ray's own check after its own preparation, and by two that it lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.distributed
FOLDER = Path(__file__).resolve().parents[2] / "cluster"
FILES = ("ray-on-premise.yaml", "ray-aws.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def check(config: dict[str, Any]) -> dict[str, Any]:
    """Raise what Ray or we have against ``config``; returns it with Ray's defaults filled in.

    Ray's validator rejects valid files that were not prepared before, and takes a negative number of workers; without a
    provider it dies of a KeyError.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    if not isinstance(config.get("provider"), dict) or "type" not in config["provider"]:
        raise ValueError("provider.type must be given")
    types = config.get("available_node_types", {})
    for holder in (config, *types.values()):
        for key in ("min_workers", "max_workers"):
            if holder.get(key, 0) < 0:
                raise ValueError(f"{key} must be at least 0, got {holder[key]}")
        if holder.get("min_workers", 0) > holder.get("max_workers", config.get("max_workers", 0)):
            raise ValueError("min_workers must be at most max_workers")
    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name):
    assert check(read(name))["available_node_types"]


def spoilt(name: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    config = read(name)
    change(config)
    return config


BROKEN = {
    "unknown key": ("ray-aws.yaml", lambda c: c.update(max_worker=2), "max_worker"),
    "unknown key of a machine": (
        "ray-aws.yaml",
        lambda c: c["available_node_types"]["gpu"].update(node_conf={}),
        "node_conf",
    ),
    "wrong type": ("ray-aws.yaml", lambda c: c.update(idle_timeout_minutes="ten"), "ten"),
    "wrong type on premise": ("ray-on-premise.yaml", lambda c: c.update(auth=[]), r"\[\]"),
    "head type that is none": ("ray-aws.yaml", lambda c: c.update(head_node_type="heads"), "head_node_type"),
    "more from the start than ever": ("ray-aws.yaml", lambda c: c.update(max_workers=1), "max_workers"),
    "fewer than none": (
        "ray-aws.yaml",
        lambda c: c["available_node_types"]["gpu"].update(min_workers=-1),
        "at least 0",
    ),
    "no provider": ("ray-aws.yaml", lambda c: c.pop("provider"), "provider.type"),
    "provider without a type": ("ray-on-premise.yaml", lambda c: c["provider"].pop("type"), "provider.type"),
}


@pytest.mark.parametrize(("name", "change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_found(name, change, words):
    import jsonschema

    with pytest.raises((ValueError, TypeError, jsonschema.ValidationError), match=words):
        check(spoilt(name, change))


@pytest.mark.parametrize("name", FILES)
def test_ray_starts_with_a_token_and_a_dashboard_that_only_the_head_reaches(name):
    config = read(name)
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert "RAY_AUTH_MODE=token ray start --head" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379" in worker
    (target,) = [target for target, source in config["file_mounts"].items() if source == "~/.ray/auth_token"]
    assert target.endswith("/.ray/auth_token")


@pytest.mark.parametrize("name", FILES)
def test_every_machine_is_there_from_the_start_because_a_launch_takes_what_is_there(name):
    config = read(name)
    workers = config.get("available_node_types", {}).get("gpu", config)
    assert workers["min_workers"] == workers["max_workers"] == config["max_workers"] > 0


def test_the_machines_on_premise_are_as_many_as_the_workers():
    config = read("ray-on-premise.yaml")
    assert len(config["provider"]["worker_ips"]) == config["max_workers"]


def test_what_is_rented_is_given_back_and_large_enough_for_exchange_between_processes():
    config = read("ray-aws.yaml")
    assert config["provider"]["cache_stopped_nodes"] is False
    assert any(option.startswith("--shm-size") for option in config["docker"]["run_options"])
