"""The Kubernetes manifests: known fields only, a token, an end to the cost, shared memory, limits; what is caught."""

from __future__ import annotations

import copy
import lzma
import shlex
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_schema import RESOURCES, closed

from ganscale.cli import main
from ganscale.presets import PRESETS

pytestmark = pytest.mark.distributed
FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
MANIFESTS = {"RayJob": "rayjob.yaml", "RayCluster": "raycluster.yaml"}
CRDS = {"RayJob": "ray.io_rayjobs.yaml.xz", "RayCluster": "ray.io_rayclusters.yaml.xz"}


def read(kind: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / MANIFESTS[kind]).read_text())


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def pods_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(manifest)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def mistakes(manifest: dict[str, Any]) -> list[str]:
    """Return what the schema finds, each with the place where it is."""
    checker = jsonschema.Draft202012Validator(RESOURCES[manifest["kind"]])
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(manifest)]


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_has_only_fields_that_the_operator_knows(kind):
    assert mistakes(read(kind)) == []


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_meets_the_whole_crd(kind):
    with lzma.open(Path(__file__).parent / "crds" / CRDS[kind], "rt") as stream:
        versions = yaml.load(stream, yaml.CSafeLoader)["spec"]["versions"]
    (version,) = [version for version in versions if version["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which a CRD leaves open
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(read(kind))] == []
    wrong = read(kind)
    cluster_of(wrong)["headGroupSpec"]["templat"] = {}
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(wrong))  # the CRD is really closed


def _rename(holder: dict[str, Any], old: str, new: str) -> None:
    holder[new] = holder.pop(old)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "typo": (lambda m: _rename(m["spec"], "shutdownAfterJobFinishes", "shutDownAfterJobFinishes"), "shutDownAfter"),
    "typo deep inside": (lambda m: _rename(container(m)["resources"], "limits", "limit"), "limit"),
    "wrong type": (lambda m: m["spec"].update(ttlSecondsAfterFinished="300"), "ttlSecondsAfterFinished"),
    "wrong word": (lambda m: cluster_of(m)["authOptions"].update(mode="on"), "mode"),
    "old version": (lambda m: m.update(apiVersion="ray.io/v1alpha1"), "apiVersion"),
    "nothing to run": (lambda m: m["spec"].pop("entrypoint"), "entrypoint"),
    "fewer than none": (lambda m: worker(m).update(minReplicas=-1), "minReplicas"),
    "a number where Ray takes text": (lambda m: worker(m).update(rayStartParams={"num-cpus": 0}), "num-cpus"),
    "no workers": (lambda m: cluster_of(m).update(workerGroupSpecs=[]), "workerGroupSpecs"),
    "a size without sense": (lambda m: container(m)["resources"]["limits"].update(memory="16 GB"), "memory"),
}


def worker(manifest: dict[str, Any]) -> dict[str, Any]:
    return cluster_of(manifest)["workerGroupSpecs"][0]


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    return worker(manifest)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(("spoil", "where"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_in_a_manifest_is_found_and_named(spoil, where):
    manifest = copy.deepcopy(read("RayJob"))
    spoil(manifest)
    found = mistakes(manifest)
    assert found
    assert where in " ".join(found)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_cluster_asks_for_a_token_and_has_our_ray(kind):
    cluster = cluster_of(read(kind))
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == metadata.version("ray")


@pytest.mark.parametrize("kind", MANIFESTS)
def test_every_pod_is_bounded_unprivileged_and_has_shared_memory(kind):
    for pod in pods_of(read(kind)):
        spec = pod["spec"]
        (only,) = spec["containers"]
        assert only["resources"]["limits"] == only["resources"]["requests"]  # a pod that is squeezed is killed later
        assert {"cpu", "memory"} <= only["resources"]["limits"].keys()
        mounts = {mount["mountPath"]: mount["name"] for mount in only["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert set(mounts.values()) == set(volumes)
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "sizeLimit" in volumes[mounts["/dev/shm"]]["emptyDir"]
        assert "persistentVolumeClaim" in volumes[mounts["/runs"]]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert only["securityContext"]["allowPrivilegeEscalation"] is False
        assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("kind", MANIFESTS)
def test_the_size_of_a_cluster_is_fixed_because_a_launch_takes_what_is_there(kind):
    for group in cluster_of(read(kind))["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_worker_that_gets_sigterm_has_the_time_in_which_ray_drains_its_node_and_more_to_end(kind):
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S as DRAIN_S

    spec = worker(read(kind))["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= 1.5 * DRAIN_S > 0
    assert "lifecycle" not in container(read(kind))  # `ray stop` before the signal would end the workers unsaved


def test_a_job_ends_its_cluster_and_its_cost():
    spec = read("RayJob")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] == 0
    assert 0 < spec["ttlSecondsAfterFinished"] < spec["activeDeadlineSeconds"]


def test_the_job_is_a_launch_that_asks_for_exactly_the_gpus_of_the_workers():
    manifest = read("RayJob")
    program, verb, *words = shlex.split(manifest["spec"]["entrypoint"])
    assert (program, verb) == ("ganscale", "launch")
    asked = main.commands["launch"].make_context("launch", words).params
    assert asked["preset"] in PRESETS
    assert asked["address"] == "auto"
    gpus = int(container(manifest)["resources"]["limits"]["nvidia.com/gpu"])
    assert int(asked["gpus"]) == gpus * worker(manifest)["replicas"]
    assert asked["runs_dir"] in {mount["mountPath"] for mount in container(manifest)["volumeMounts"]}


def test_both_manifests_describe_the_same_cluster():
    assert cluster_of(read("RayJob")) == cluster_of(read("RayCluster"))


def test_the_policy_lets_in_the_pods_themselves_the_submitter_and_the_operator_alone():
    policy = yaml.safe_load((FOLDER / "network-policy.yaml").read_text())
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for kind in MANIFESTS:
        for pod in pods_of(read(kind)):
            assert selected.items() <= pod["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    assert all(source for source in rule["from"])  # an empty one would let everybody in
    assert {"podSelector": {"matchLabels": selected}} in rule["from"]
    assert {"podSelector": {"matchLabels": {"job-name": read("RayJob")["metadata"]["name"]}}} in rule["from"]
