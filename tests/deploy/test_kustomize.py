"""What is applied to a Kubernetes cluster: rendered, held against schemas, and against policies."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from peer.cli import build_app
from peer.newtask.command import write_task
from relayswarm import config

ROOT = Path(__file__).parents[2]
OVERLAYS = ROOT / "deploy/kustomize/overlays"
NAMES = sorted(path.name for path in OVERLAYS.iterdir())
OF_SITES = ("site",)  # their coordinator is elsewhere
SWARMS = [name for name in NAMES if name not in OF_SITES]
VERSIONS = ("1.29", "1.33", "1.37")  # of Kubernetes: from the pod index's label to the newest known

Document = dict[str, Any]


@cache
def kubectl() -> str:
    """The program, from PATH or from where `make test` puts it."""
    path = os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent)))
    found = shutil.which("kubectl", path=path)
    assert found, "kubectl not found: install it, or run `make kubectl`"
    return found


@cache
def rendered(overlay: str) -> tuple[Document, ...]:
    text = subprocess.run(
        (kubectl(), "kustomize", str(OVERLAYS / overlay)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    return tuple(yaml.safe_load_all(text))


def only(overlay: str, kind: str, name: str = "") -> Document:
    (document,) = (
        one
        for one in rendered(overlay)
        if one["kind"] == kind and name in ("", one["metadata"]["name"])
    )
    return document


def workloads(documents: Iterable[Document]) -> Iterator[tuple[Document, Document]]:
    """Workloads and their pods' template."""
    for document in documents:
        if document["kind"] in ("Deployment", "StatefulSet"):
            yield document, document["spec"]["template"]


def violations(document: Document) -> list[str]:
    """What is wrong with a workload."""
    pod = document["spec"]["template"]["spec"]
    found = [f"pod: {what}" for what in _violations_of_pod(pod)]
    for container in pod["containers"]:
        found += [f"{container['name']}: {what}" for what in _violations_of_container(container)]
    return found


def _violations_of_pod(pod: Document) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if pod.get("automountServiceAccountToken", True):
        yield "has a token of the cluster's API"
    if pod.get("terminationGracePeriodSeconds", 0) < 30:
        yield "has no time to leave"
    if pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}:
        yield "shares the host's namespaces"


def _violations_of_container(container: Document) -> Iterator[str]:
    security = container.get("securityContext", {})
    if not security.get("readOnlyRootFilesystem"):
        yield "root file system may be written"
    if security.get("allowPrivilegeEscalation", True):
        yield "may gain privileges"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    for kind in ("requests", "limits"):
        if not container.get("resources", {}).get(kind, {}).keys() >= {"cpu", "memory"}:
            yield f"no {kind} of cpu and memory"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if not container.get(probe, {}).keys() & {"grpc", "exec"}:
            yield f"no {probe} by gRPC"
    if not re.search(r":(?!latest$)[\w.-]+$|@sha256:", container["image"]):
        yield "image without a version"


BROKEN = {
    "root": ("spec.template.spec.securityContext.runAsNonRoot", "may run as root"),
    "limits": ("spec.template.spec.containers.0.resources.limits", "no limits"),
    "memory": ("spec.template.spec.containers.0.resources.limits.memory", "no limits"),
    "liveness": ("spec.template.spec.containers.0.livenessProbe", "no livenessProbe"),
    "read-only": (
        "spec.template.spec.containers.0.securityContext.readOnlyRootFilesystem",
        "root file system",
    ),
    "capabilities": ("spec.template.spec.containers.0.securityContext.capabilities", "keeps"),
    "token": ("spec.template.spec.automountServiceAccountToken", "token"),
}


def without(document: Document, path: str) -> Document:
    """A copy that lacks what is at the path."""
    changed = copy.deepcopy(document)
    *way, last = path.split(".")
    place: Any = changed
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place[key]
    del place[last]
    return changed


def test_there_are_the_overlays_that_the_documentation_tells_of() -> None:
    assert NAMES == ["gpu", "local", "mtls", "outside", "own-task", "production", "site"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", NAMES)
def test_every_document_is_valid(overlay: str, version: str) -> None:
    for document in rendered(overlay):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_are_strict() -> None:
    document = copy.deepcopy(only("local", "Deployment"))
    document["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", NAMES)
def test_policies_hold(overlay: str) -> None:
    found = {
        document["metadata"]["name"]: violations(document)
        for document, _ in workloads(rendered(overlay))
    }
    expected = {"peer"} if overlay in OF_SITES else {"coordinator", "peer"}
    assert found == {name: [] for name in expected}
    namespace = only(overlay, "Namespace")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("path", "what"), BROKEN.values(), ids=BROKEN)
def test_policies_notice(path: str, what: str) -> None:
    for document, _ in workloads(rendered("local")):
        assert any(what in one for one in violations(without(document, path)))


@pytest.mark.parametrize("image", ["peer", "peer:latest", "registry.example:5000/peer"])
def test_policies_notice_images_without_a_version(image: str) -> None:
    document = copy.deepcopy(only("local", "StatefulSet"))
    document["spec"]["template"]["spec"]["containers"][0]["image"] = image
    assert any("version" in one for one in violations(document))


@pytest.mark.parametrize("overlay", NAMES)
def test_volumes_ports_and_labels_fit_together(overlay: str) -> None:
    for document, template in workloads(rendered(overlay)):
        pod, spec = template["spec"], document["spec"]
        volumes = {one["name"] for one in pod["volumes"]}
        volumes |= {one["metadata"]["name"] for one in spec.get("volumeClaimTemplates", [])}
        (container,) = pod["containers"]
        assert {one["name"] for one in container["volumeMounts"]} == volumes
        assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        annotations = template["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true"
        assert annotations["prometheus.io/port"] == str(ports["http"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            target = container[probe].get("grpc", {}).get("port") or int(
                container[probe]["exec"]["command"][-1].rpartition(":")[2]
            )
            assert target == ports["grpc"]
        service = only(overlay, "Service", document["metadata"]["name"])
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        assert {one["targetPort"] for one in service["spec"]["ports"]} == set(ports)
        policy = only(overlay, "NetworkPolicy", document["metadata"]["name"])["spec"]
        selected = policy["podSelector"]["matchLabels"]
        assert selected.items() <= template["metadata"]["labels"].items()
        opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        assert opened == set(ports.values())
    budget = only(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    peer = only(overlay, "StatefulSet")["spec"]
    assert budget == peer["selector"]["matchLabels"]
    assert only(overlay, "Service", peer["serviceName"])["spec"]["clusterIP"] == "None"


def test_prometheus_finds_the_pods_under_the_jobs_that_rules_know() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/kubernetes.yml").read_text())
    (job,) = config["scrape_configs"]
    kept = {
        one["source_labels"][0]: one["regex"]
        for one in job["relabel_configs"]
        if one.get("action") == "keep"
    }
    jobs = set()
    for _, template in workloads(rendered("local")):
        labels = template["metadata"]["labels"]
        part_of = kept["__meta_kubernetes_pod_label_app_kubernetes_io_part_of"]
        assert labels["app.kubernetes.io/part-of"] == part_of
        (container,) = template["spec"]["containers"]
        ports = {one["name"] for one in container["ports"]}
        assert kept["__meta_kubernetes_pod_container_port_name"] in ports
        jobs.add("relayswarm-" + labels["app.kubernetes.io/name"])
    compose = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert jobs == {one["job_name"] for one in compose["scrape_configs"]}
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text()
    assert set(re.findall(r'job="([^"]+)"', rules)) <= jobs


@pytest.mark.parametrize("overlay", NAMES)
def test_options_are_those_of_the_commands(overlay: str) -> None:
    """Flags and variables that no command knows would be errors, or of no effect, in the pod."""
    for document, template in workloads(rendered(overlay)):
        (container,) = template["spec"]["containers"]
        own = document["metadata"]["name"]
        known = {flag for flag, _ in options_of(own).items()}
        arguments = container.get("args", [own])
        assert arguments[0] == own
        assert {one.partition("=")[0] for one in arguments[1:]} <= known
        for name in (one["name"] for one in container["env"]):
            if match := re.fullmatch(r"RELAYSWARM_([A-Z]+)_(\w+)", name):
                command = match[1].lower()
                assert command in (own, "health"), name
                flag = "--" + match[2].lower().replace("_", "-")
                assert flag in options_of(command), name


@cache
def options_of(command: str) -> Mapping[str, Any]:
    click: Any = typer.main.get_command(build_app(command))
    return {flag: one for one in click.commands[command].params for flag in one.opts}


@pytest.mark.parametrize("overlay", NAMES)
def test_variables_refer_to_earlier_ones(overlay: str) -> None:
    """Kubernetes leaves $(NAME) as it is where NAME comes later."""
    for _, template in workloads(rendered(overlay)):
        (container,) = template["spec"]["containers"]
        seen: set[str] = set()
        for one in container["env"]:
            assert references(one.get("value", "")) <= seen, one
            seen.add(one["name"])
        assert len(seen) == len(container["env"])
        for text in container.get("args", []):
            assert references(text) <= seen
        for mount in container["volumeMounts"]:
            assert references(mount.get("subPathExpr", "")) <= seen


def references(text: str) -> set[str]:
    return set(re.findall(r"\$\((\w+)\)", text))


@pytest.mark.parametrize("overlay", SWARMS)
def test_the_run_is_valid_and_has_its_peers(overlay: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(only(overlay, "ConfigMap")["data"]["run.toml"], encoding="utf-8")
    run = config.load(path)
    assert run.peers == only(overlay, "StatefulSet")["spec"]["replicas"]
    assert run.shards >= 2 * run.peers  # room to grow


@pytest.mark.parametrize("overlay", NAMES)
def test_traffic_is_encrypted_or_said_not_to_be(overlay: str) -> None:
    for document, template in workloads(rendered(overlay)):
        (container,) = template["spec"]["containers"]
        names = {one["name"] for one in container["env"]}
        prefix = f"RELAYSWARM_{document['metadata']['name'].upper()}"
        tls = {f"{prefix}_TLS_{part}" for part in ("CA", "CERT", "KEY")}
        if overlay in ("mtls", "outside", *OF_SITES):
            assert tls <= names
            assert f"{prefix}_INSECURE" not in names
            is_open = f"{prefix}_INSECURE_HTTP" in names  # the page, for Prometheus
            assert is_open == (document["metadata"]["name"] == "coordinator")
        else:
            assert f"{prefix}_INSECURE" in names
            assert not tls & names


def test_each_peer_of_gpu_has_one() -> None:
    (container,) = only("gpu", "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "RELAYSWARM_PEER_DEVICE", "value": "cuda"} in container["env"]


def test_outside_every_peer_has_the_port_that_it_advertises() -> None:
    peer = only("outside", "StatefulSet")
    (container,) = peer["spec"]["template"]["spec"]["containers"]
    (advertise,) = (one for one in container["args"] if one.startswith("--advertise="))
    pattern = advertise.partition(":")[2]
    for k in range(peer["spec"]["replicas"]):
        (port,) = only("outside", "Service", f"peer-{k}-outside")["spec"]["ports"]
        assert str(port["nodePort"]) == pattern.replace("$(POD_INDEX)", str(k))


def test_a_task_of_ones_own_is_where_its_processes_look(tmp_path: Path) -> None:
    """The files are those of the config map that docs/deploy.md has made."""
    write_task(tmp_path / "my_task")
    shown = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^kubectl .* create configmap task (.*)$", shown, re.MULTILINE)
    files = {Path(one.partition("=")[2]).name for one in command.split()}
    assert files <= {path.name for path in (tmp_path / "my_task").iterdir()}
    named = {
        "Deployment": "RELAYSWARM_COORDINATOR_CONFIG",
        "StatefulSet": "RELAYSWARM_PEER_TASK_FILE",
    }
    for kind, variable in named.items():
        pod = only("own-task", kind)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        (value,) = (Path(one["value"]) for one in container["env"] if one["name"] == variable)
        (mount,) = (
            one for one in container["volumeMounts"] if one["mountPath"] == str(value.parent)
        )
        assert value.name in files
        (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
        assert volume["configMap"] == {"name": "task"}
    run = config.load(tmp_path / "my_task" / "run.toml")
    assert run.peers == only("own-task", "StatefulSet")["spec"]["replicas"]
    assert Path(str(run.task.file)).name in files
