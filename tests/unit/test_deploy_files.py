"""Are the files in deploy/ what the programs that read them accept?

Where a registry has the program or its schema, that is asked: hadolint for the Dockerfile, the real
docker compose for the compose file, Kubernetes' own schemas for its objects. For KubeRay's
RayCluster no registry has a schema; its structure is checked against the fields of the CRD, written
down here.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.34"

STRING_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
TEMPLATE = {"type": "object", "required": ["spec"]}  # Checked as a pod, by Kubernetes' own schema.
HEAD = {
    "type": "object",
    "additionalProperties": False,
    "required": ["template"],
    "properties": {
        "enableIngress": {"type": "boolean"},
        "headService": {"type": "object"},
        "rayStartParams": STRING_MAP,
        "resources": STRING_MAP,
        "labels": STRING_MAP,
        "serviceType": {"type": "string"},
        "template": TEMPLATE,
    },
}
WORKER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groupName", "template"],
    "properties": {
        "groupName": {"type": "string"},
        "idleTimeoutSeconds": {"type": "integer"},
        "labels": STRING_MAP,
        "maxReplicas": {"type": "integer", "minimum": 0},
        "minReplicas": {"type": "integer", "minimum": 0},
        "numOfHosts": {"type": "integer", "minimum": 1},
        "rayStartParams": STRING_MAP,
        "replicas": {"type": "integer", "minimum": 0},
        "resources": STRING_MAP,
        "scaleStrategy": {"type": "object"},
        "suspend": {"type": "boolean"},
        "template": TEMPLATE,
    },
}
RAY_CLUSTER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["headGroupSpec"],
            "properties": {
                "authOptions": {"type": "object"},
                "autoscalerOptions": {"type": "object"},
                "enableInTreeAutoscaling": {"type": "boolean"},
                "gcsFaultToleranceOptions": {"type": "object"},
                "headGroupSpec": HEAD,
                "headServiceAnnotations": STRING_MAP,
                "managedBy": {"type": "string"},
                "rayVersion": {"type": "string"},
                "suspend": {"type": "boolean"},
                "workerGroupSpecs": {"type": "array", "items": WORKER},
            },
        },
    },
}


@pytest.fixture(scope="module")
def manifests():
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


@pytest.fixture(scope="module")
def ray_cluster(manifests):
    return next(each for each in manifests if each["kind"] == "RayCluster")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def program(name):
    """A program that a package of the extra `dev` brought along."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    assert found, f"{name} is missing: install the extra `dev`"
    return found


def groups_of(ray_cluster):
    return [ray_cluster["spec"]["headGroupSpec"], *ray_cluster["spec"]["workerGroupSpecs"]]


def test_dockerfile_passes_hadolint():
    command = [program("hadolint"), DEPLOY / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile_copies_what_exists_from_pinned_images_and_drops_root():
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    stages = [line.split()[1::2] for line in lines if line.startswith("FROM ")]
    names = {name for _, name in stages}
    assert {"cpu", "gpu"} <= names
    for image, _ in stages:
        assert image in names or re.search(r":\d+\.\d+\.\d+-", image), f"{image} is not pinned"
    for line in lines:
        if line.startswith("COPY ") and "--from=" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), f"{line}: there is no {source}"
    for target in ("cpu", "gpu"):
        begin = lines.index(next(line for line in lines if line.endswith(f" AS {target}")))
        stage = lines[begin + 1 :]
        stage = stage[: next((n for n, line in enumerate(stage) if line.startswith("FROM")), None)]
        instructions = {line.split()[0]: line for line in stage if line[:1].isupper()}
        assert instructions["USER"] == "USER 10001:10001"
        assert "health_probe" in instructions["HEALTHCHECK"]
        assert "keep_cluster" in instructions["ENTRYPOINT"]


def test_compose_is_accepted_by_docker_compose():
    files = ["-f", DEPLOY / "compose.yaml", "--profile", "gpu"]
    command = [program("docker-compose"), *files, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compose_publishes_on_loopback_only_and_checks_health(compose):
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port} to everyone"
        build = service.get("build")
        if build:
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
            assert f" AS {build['target']}\n" in (DEPLOY / "Dockerfile").read_text()
    for config in compose["configs"].values():
        assert (DEPLOY / config["file"]).is_file()


def test_compose_probes_the_name_and_port_that_the_topology_declares(compose):
    service = compose["services"]["shoal"]
    topology = yaml.safe_load((DEPLOY / compose["configs"]["topology"]["file"]).read_text())
    assert service["hostname"] == topology["listen_host"]
    probed = f"{topology['listen_host']}:{topology['broker_port']}"
    assert service["environment"]["SHOAL_PROBE_ADDRESS"] == probed
    assert service["ports"] == [f"127.0.0.1:7600:{topology['broker_port']}"]


def test_kubernetes_objects_fit_their_schemas(manifests):
    for manifest in manifests:
        if manifest["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_ray_cluster_fits_the_fields_of_its_crd(ray_cluster):
    jsonschema.validate(ray_cluster, RAY_CLUSTER)
    for group in groups_of(ray_cluster):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
        kubernetes_validate.validate(
            pod | {"spec": group["template"]["spec"]}, KUBERNETES, strict=True
        )


def test_ray_cluster_requires_rays_token_and_no_root(ray_cluster, manifests):
    job = next(each for each in manifests if each["kind"] == "Job")
    pods = [group["template"]["spec"] for group in groups_of(ray_cluster)]
    for pod in [*pods, job["spec"]["template"]["spec"]]:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            environment = {each["name"]: each for each in container["env"]}
            assert environment["RAY_AUTH_MODE"]["value"] == "token"
            assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"]
            assert container["resources"]["limits"]["memory"]
    for pod in pods:
        for container in pod["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_ray_cluster_offers_what_the_topology_asks_for(ray_cluster):
    topology = yaml.safe_load((DEPLOY / "topologies" / "three-nodes.yaml").read_text())
    offered = {}
    for group in groups_of(ray_cluster):
        # KubeRay hands the value to a shell: a JSON object in double quotes in single quotes.
        resources = json.loads(json.loads(group["rayStartParams"]["resources"].strip("'")))
        for name, amount in resources.items():
            offered[name] = offered.get(name, 0) + amount * group.get("replicas", 1)
    scale = topology["scale"]
    counts = {
        "broker": scale["brokers"],
        "writer": 1,
        "encoder": scale["encoders"],
        "reranker": scale["rerankers"],
        "shard": scale["replicas"] * scale["shard_servers"],
    }
    for role, placement in topology["placement"].items():
        for name, amount in placement["resources"].items():
            assert offered[name] >= amount * counts[role], f"too little {name} for {role}"


def test_service_reaches_every_broker(ray_cluster, manifests):
    topology = yaml.safe_load((DEPLOY / "topologies" / "three-nodes.yaml").read_text())
    service = next(
        each
        for each in manifests
        if each["kind"] == "Service" and each["metadata"]["name"] == "shoal"
    )
    first = topology["broker_port"]
    expected = set(range(first, first + topology["scale"]["brokers"]))
    assert {port["targetPort"] for port in service["spec"]["ports"]} == expected
    head = ray_cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert expected <= {port["containerPort"] for port in head["ports"]}


def test_kustomization_puts_together_files_that_exist():
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    for resource in kustomization["resources"]:
        assert (DEPLOY / resource).is_file()
    for generator in kustomization["configMapGenerator"]:
        for source in generator["files"]:
            assert (DEPLOY / source.partition("=")[2]).is_file()


def test_images_are_the_same_everywhere(compose, manifests, ray_cluster):
    containers = [
        container
        for group in groups_of(ray_cluster)
        for container in group["template"]["spec"]["containers"]
    ]
    for manifest in manifests:
        if manifest["kind"] in ("Job", "Deployment"):
            containers += manifest["spec"]["template"]["spec"]["containers"]
    used = {container["image"] for container in containers}
    assert used == {compose["services"][name]["image"] for name in ("shoal", "redis")}
