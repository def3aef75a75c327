"""The KubeRay manifest against the fields that the ray.io/v1 schema has, and the README against the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"

# Written down from the RayJob schema of KubeRay 1.7 (ray.io/v1); an unknown field is dropped or refused by the server.
RAY_JOB_SPEC = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER_SPEC = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "networkPolicy", "rayVersion", "suspend", "tlsOptions", "upgradeStrategy",
    "workerGroupSpecs",
}  # fmt: skip
HEAD_GROUP = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKER_GROUP = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip
POD = {"containers", "volumes", "nodeSelector", "tolerations", "serviceAccountName", "imagePullSecrets", "affinity"}
CONTAINER = {"name", "image", "resources", "ports", "volumeMounts", "env", "envFrom", "command", "args", "lifecycle"}
NETWORK_POLICY_SPEC = {"podSelector", "policyTypes", "ingress", "egress"}


def problems_of(job: dict[str, Any]) -> list[str]:
    """Fields that the schema does not have, and required ones that are missing."""
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    found = [f"spec.{name}" for name in spec.keys() - RAY_JOB_SPEC]
    found += [f"rayClusterSpec.{name}" for name in cluster.keys() - RAY_CLUSTER_SPEC]
    found += [f"authOptions.{name}" for name in cluster["authOptions"].keys() - {"mode", "secretName"}]
    found += [f"headGroupSpec.{name}" for name in cluster["headGroupSpec"].keys() - HEAD_GROUP]
    for group in cluster["workerGroupSpecs"]:
        found += [f"workerGroupSpecs.{name}" for name in group.keys() - WORKER_GROUP]
        found += [f"missing {name}" for name in {"groupName", "minReplicas", "maxReplicas", "template"} - group.keys()]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        found += [f"rayStartParams.{name}" for name, value in group["rayStartParams"].items() if type(value) is not str]
        pod = group["template"]["spec"]
        found += [f"pod.{name}" for name in pod.keys() - POD]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            found += [f"container.{name}" for name in container.keys() - CONTAINER]
            found += [f"volume {mount['name']}" for mount in container["volumeMounts"] if mount["name"] not in volumes]
    return found


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text()))


def test_the_job_has_only_fields_of_the_schema(documents: list[dict[str, Any]]) -> None:
    job = documents[0]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert problems_of(job) == []


def test_a_misspelt_field_is_found(documents: list[dict[str, Any]]) -> None:
    job = documents[0]
    job["spec"]["entryPoint"] = job["spec"].pop("entrypoint")
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    del job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert problems_of(job) == ["spec.entryPoint", "missing maxReplicas", "rayStartParams.num-cpus"]


def test_the_job_is_what_the_readme_promises(documents: list[dict[str, Any]]) -> None:
    spec = documents[0]["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["entrypoint"].startswith("python -m raydpo train /"), "a relative config would not be on the head"
    version = tuple(int(part) for part in cluster["rayVersion"].split("."))
    assert version >= (2, 54, 0), "older Ray has known holes in its job interface"
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    shared = {str(volume) for pod in pods for volume in pod["volumes"] if volume["name"] == "shared"}
    assert len(shared) == 1, "all pods mount the same claim"
    for pod in pods:
        for container in pod["containers"]:
            assert {"name": "shared", "mountPath": "/mnt/shared"} in container["volumeMounts"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"], "a run needs all places at once"


def test_the_network_policy_keeps_ray_inside(documents: list[dict[str, Any]]) -> None:
    policy = documents[1]
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert policy["spec"].keys() <= NETWORK_POLICY_SPEC
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    for rule in policy["spec"]["ingress"]:
        assert rule["from"], "an empty list would let everybody in"
        for peer in rule["from"]:
            assert peer.keys() <= {"podSelector", "namespaceSelector"}
            if "namespaceSelector" in peer:
                assert [port["port"] for port in rule["ports"]] == [8265]


def test_the_readme_has_the_line_to_submit_and_the_token_steps() -> None:
    text = (CLUSTER / "README.md").read_text()
    assert "\nray job submit --working-dir . -- python -m raydpo train run.yaml\n" in text
    for step in ("export RAY_AUTH_MODE=token", "ray get-auth-token --generate", "ray start --head --num-cpus 0"):
        assert step in text
