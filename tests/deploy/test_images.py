"""What the images are made of follows from the project's metadata."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from peer.newtask.command import write_task
from relayswarm import config

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_PEERS_ALONE = {  # distribution: what is imported of it
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "xxhash": "xxhash",
    "pillow": "PIL",
    "jinja2": "jinja2",
    "blake3": "blake3",
}


def requirements() -> set[str]:
    text = (ROOT / "deploy/docker/coordinator-requirements.txt").read_text(encoding="utf-8")
    return {line for line in text.splitlines() if line and not line.startswith("#")}


def test_the_coordinator_needs_every_dependency_but_those_of_peers_alone() -> None:
    declared = {re.split(r"[<>=]", one)[0] for one in PROJECT["dependencies"]}
    assert requirements() == {name for name in declared if name not in OF_PEERS_ALONE}


def test_the_coordinator_starts_without_those_of_peers_alone() -> None:
    """Every module of its process is imported while those of peers alone cannot be."""
    blocked = list(OF_PEERS_ALONE.values())
    assert all(importlib.util.find_spec(name) for name in blocked)  # else it would prove nothing
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "import peer.cli, coordinator.runner, coordinator.health, coordinator.status"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_version_label_is_the_projects() -> None:
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert f"ARG VERSION={PROJECT['version']}\n" in dockerfile
    images = re.findall(r"image: relayswarm-\w+:(\S+)", compose)
    assert images == [PROJECT["version"]] * 2


def compose(*overrides: str) -> list[dict[str, Any]]:
    """The services of the compose file, and of override files."""
    files = ("docker-compose.yml", *overrides)
    return [yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["services"] for name in files]


def test_compose_starts_the_runs_peers() -> None:
    run = config.load(ROOT / "deploy/run.toml")
    (services,) = compose()
    assert run.peers == services["peer"]["scale"] == 4
    assert run.shards >= 8  # it may grow


def test_compose_goes_without_tls_or_has_it_on_both_sides() -> None:
    plain, mtls = compose("deploy/compose.mtls.yml")
    for command in ("coordinator", "peer"):
        variable = f"RELAYSWARM_{command.upper()}_INSECURE"
        assert plain[command]["environment"][variable] == "true"
        assert mtls[command]["environment"][variable] == "false"
    assert mtls["coordinator"]["environment"]["RELAYSWARM_COORDINATOR_INSECURE_HTTP"] == "true"
    assert set(mtls) == {"coordinator", "peer"}


def test_gpu_overrides_what_there_is() -> None:
    plain, gpu = compose("deploy/compose.gpu.yml")
    assert gpu.keys() <= plain.keys()
    assert gpu["peer"]["build"]["args"].keys() <= plain["peer"]["build"]["args"].keys()
    assert gpu["peer"]["environment"] == {"RELAYSWARM_PEER_DEVICE": "cuda"}


def test_compose_mounts_a_task_of_ones_own_where_its_processes_look(tmp_path: Path) -> None:
    plain, own = compose("deploy/compose.task.yml")
    write_task(tmp_path / "my_task")
    named = {"coordinator": "RELAYSWARM_COORDINATOR_CONFIG", "peer": "RELAYSWARM_PEER_TASK_FILE"}
    assert own.keys() == named.keys()
    for service, variable in named.items():
        value = Path(own[service]["environment"][variable])
        assert own[service]["volumes"] == [f"${{TASK_DIR:-./my_task}}:{value.parent}:ro"]
        assert (tmp_path / "my_task" / value.name).exists()
    run = config.load(tmp_path / "my_task" / "run.toml")
    assert run.peers == plain["peer"]["scale"]
