"""What cluster/ ships: manifests against KubeRay's schema, the dashboard against the gauges, scripts, the README's promises."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo.runtime.gauges import GAUGES
from tests.cluster.schema import problems_of
from tools.image_steps import instructions

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
KUBERAY = ["rayjob.yaml", "rayjob-object-store.yaml", "raycluster.yaml"]
JOBS = KUBERAY[:2]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def cluster_of(name: str) -> dict[str, Any]:
    spec = documents(name)[0]["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return found


def groups_of(name: str) -> list[dict[str, Any]]:
    cluster = cluster_of(name)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("name", KUBERAY)
def test_a_manifest_has_only_fields_of_the_schema(name: str) -> None:
    assert problems_of(documents(name)[0]) == []


def test_a_misspelt_field_is_found_at_any_depth() -> None:
    job = documents("rayjob.yaml")[0]
    job["spec"]["entryPoint"] = job["spec"].pop("entrypoint")
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    groups[0]["template"]["spec"]["containers"][0]["volumeMount"] = []
    del groups[0]["maxReplicas"]
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    paths = [problem.partition(": ")[0] for problem in problems_of(job)]
    where = "spec.rayClusterSpec"
    assert sorted(paths) == [
        "spec",
        f"{where}.headGroupSpec.rayStartParams.num-cpus",
        f"{where}.workerGroupSpecs.0",
        f"{where}.workerGroupSpecs.0.template.spec.containers.0",
    ]


@pytest.mark.parametrize("name", KUBERAY)
def test_a_cluster_has_a_token_and_a_head_without_work(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    version = tuple(int(part) for part in cluster["rayVersion"].split("."))
    assert version >= (2, 54, 0), "older Ray has known holes in its job interface"


@pytest.mark.parametrize("name", KUBERAY)
def test_all_pods_of_a_cluster_mount_the_same(name: str) -> None:
    pods = [group["template"]["spec"] for group in groups_of(name)]
    assert len({json.dumps(pod["volumes"]) for pod in pods}) == 1
    assert len({pod.get("serviceAccountName") for pod in pods}) == 1
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"containerPort": 8080, "name": "metrics"} in container["ports"], "what podmonitor.yaml asks"


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_tried_again_and_cleans_up(name: str) -> None:
    spec = documents(name)[0]["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert re.match(r"python -m raydpo train /\S+$", spec["entrypoint"]), "a relative config would not be on the head"
    mounted = {m["mountPath"] for m in groups_of(name)[0]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert str(Path(spec["entrypoint"].split()[-1]).parent) in mounted
    for group in cluster_of(name)["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"], "without an autoscaler"


def test_the_cluster_that_grows_begins_with_nothing() -> None:
    cluster = cluster_of("raycluster.yaml")
    assert cluster["enableInTreeAutoscaling"] is True
    assert [group["minReplicas"] for group in cluster["workerGroupSpecs"]] == [0, 0]
    assert all(group["maxReplicas"] > 0 for group in cluster["workerGroupSpecs"])
    assert {group["labels"]["market-type"] for group in cluster["workerGroupSpecs"]} == {"on-demand", "spot"}


def test_the_claim_is_the_one_that_is_mounted() -> None:
    claim = documents("storage.yaml")[0]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    texts = [(CLUSTER / name).read_text() for name in ("rayjob.yaml", "raycluster.yaml")]
    names = [name for text in texts for name in re.findall(r"claimName: (\S+?)\}", text)]
    assert set(names) == {claim["metadata"]["name"]}


@pytest.mark.parametrize("name", JOBS)
def test_the_network_policy_keeps_ray_inside(name: str) -> None:
    policy = documents(name)[1]
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert policy["spec"].keys() == {"podSelector", "policyTypes", "ingress"}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    for rule in policy["spec"]["ingress"]:
        assert rule["from"], "an empty list would let everybody in"
        for peer in rule["from"]:
            assert peer.keys() <= {"podSelector", "namespaceSelector"}
            if "namespaceSelector" in peer:
                assert [port["port"] for port in rule["ports"]] == [8265]


def test_the_launcher_is_what_ray_reads() -> None:
    """Against the schema of the installed Ray, and its own check of node types."""
    from jsonschema import validate
    from ray.autoscaler import __file__ as home

    (wanted,) = documents("launcher.yaml")
    validate(wanted, json.loads((Path(home).parent / "ray-schema.json").read_text()))
    assert wanted["head_node_type"] in wanted["available_node_types"]
    assert wanted["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "--autoscaling-config" in " ".join(wanted["head_start_ray_commands"])


def test_the_dashboard_shows_every_gauge_and_no_other() -> None:
    board = json.loads((CLUSTER / "monitoring" / "grafana.json").read_text())
    expressions = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    assert {name.removeprefix("ray_") for name in re.findall(r"ray_raydpo_\w+", expressions)} == GAUGES.keys()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["description"] for panel in board["panels"])
    cells = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(cells)) == len(cells), "no panel lies on another"


@pytest.mark.parametrize("path", sorted(CLUSTER.rglob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_sound(path: Path) -> None:
    """By shellcheck where it is installed; its syntax by bash everywhere."""
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck") is not None:
        done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_symmetric_run_takes_the_options_of_the_slurm_script() -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    (call,) = re.findall(r"ray symmetric-run (.*?) -- ", (CLUSTER / "slurm.sh").read_text().replace("\\\n", ""))
    known = {option for command in (start, symmetric_run) for each in command.params for option in each.opts}
    assert set(re.findall(r"--[a-z-]+", call)) <= known


@pytest.mark.parametrize("path", sorted(CLUSTER.rglob("*.Dockerfile")), ids=lambda path: path.name)
def test_an_image_copies_what_there_is_and_runs_as_a_user(path: Path) -> None:
    text = path.read_text()
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.M) for name in line.split()[:-1]]
    assert {"constraints.txt", "pyproject.toml", "raydpo"} <= set(copied)
    assert all((CLUSTER.parent / name).exists() for name in copied)
    assert re.search(r"^USER \d+$", text, re.M)


@pytest.mark.parametrize("path", sorted(CLUSTER.rglob("*.Dockerfile")), ids=lambda path: path.name)
def test_the_steps_of_an_image_are_read_whole(path: Path) -> None:
    """`make image-steps` takes them one after the other; what it cannot read is an error. By hadolint, too, where it is
    installed."""
    if (hadolint := shutil.which("hadolint")) is not None:
        done = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    steps = instructions(path.read_text())
    kinds = [step.kind for step in steps]
    assert (kinds[0], kinds.count("RUN"), kinds[-2:]) == ("FROM", 3, ["USER", "WORKDIR"])
    commands = [step.text for step in steps if step.kind == "RUN"]
    assert commands[0].startswith("apt-get update && apt-get install --yes --no-install-recommends")
    assert commands[0].endswith("--gid 100 ray")
    assert commands[1].startswith("pip install ${TORCH_INDEX:+")
    assert commands[2].endswith("&& raydpo --help > /dev/null")
    for command in commands:
        subprocess.run(["sh", "-n", "-c", command], check=True)
    declared = {step.text.partition("=")[0] for step in steps if step.kind == "ARG"}
    assert set(re.findall(r"\$\{?([A-Z_]+)", " ".join(commands))) <= declared


@pytest.mark.parametrize(
    ("text", "problem"), [("FROM a\nHEALTHCHECK b", "line 2"), ("RUN a \\\n  && b \\\n", "without an end")]
)
def test_a_step_that_is_not_known_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        instructions(text)


def test_the_readme_names_every_file_and_the_steps_of_the_token() -> None:
    text = (CLUSTER / "README.md").read_text()
    files = [path for path in CLUSTER.rglob("*") if path.is_file() and path.name != "README.md"]
    assert [path.name for path in files if str(path.relative_to(CLUSTER)) not in text] == []
    assert "\nray job submit --working-dir . -- python -m raydpo train run.yaml\n" in text
    for step in ("export RAY_AUTH_MODE=token", "ray get-auth-token --generate", "ray start --head --num-cpus 0"):
        assert step in text
