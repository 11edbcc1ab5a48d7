"""One site, whose coordinator is elsewhere: with compose and on Kubernetes alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.test_kustomize import only, options_of, rendered

ROOT = Path(__file__).parents[2]
SITE_ENV = ROOT / "deploy/kustomize/overlays/site/site.env"
SECRETS = {"ca.pem", "peer.pem", "peer.key", "token"}
FOLDER = "${SITE_DIR:-../site}"


def compose() -> dict[str, Any]:
    """The compose file of a site."""
    text = (ROOT / "deploy/compose.site.yml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def site() -> dict[str, Any]:
    """Its only service."""
    (name,) = compose()["services"]
    assert name == "peer"  # deploy/compose.gpu.yml changes a service of that name
    service: dict[str, Any] = compose()["services"][name]
    return service


def pod() -> dict[str, Any]:
    found: dict[str, Any] = only("site", "StatefulSet")["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


def values(text: str) -> dict[str, str]:
    """Of a file of variables, one a line."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def options(variables: dict[str, str]) -> dict[str, str]:
    """Values by the command's option. Raises AssertionError for a variable of no option."""
    found = {}
    for name, value in variables.items():
        match = re.fullmatch(r"RELAYSWARM_(PEER|HEALTH)_(\w+)", name)
        assert match, name
        flag = "--" + match[2].lower().replace("_", "-")
        assert flag in options_of(match[1].lower()), name
        found[f"{match[1].lower()} {flag}"] = value
    return found


def flags(words: list[str]) -> dict[str, str]:
    assert words[0] == "peer"
    pairs = (word.partition("=") for word in words[1:])
    assert {flag for flag, _, _ in pairs} <= set(options_of("peer"))
    return {flag: value for flag, _, value in (word.partition("=") for word in words[1:])}


def test_there_is_one_peer_and_no_coordinator() -> None:
    assert only("site", "StatefulSet")["spec"]["replicas"] == 1
    assert "scale" not in site()
    names = {one["metadata"]["name"] for one in rendered("site")}
    assert names == {"relayswarm", "site", "peer", "peer-outside"}


def test_both_start_the_same_peer() -> None:
    own, cluster = flags(site()["command"]), flags(container()["args"])
    assert cluster.pop("--metrics-listen")  # for a Prometheus of the cluster
    assert own == cluster
    assert {"--resume", "--stay"} <= own.keys()
    assert "--id" not in own  # it is the site's to say
    given = options(site()["environment"]).keys()
    in_cluster = {one["name"]: "" for one in container()["env"] if "RELAYSWARM" in one["name"]}
    more = {"peer --patience", "health --tls-name"}
    assert options(in_cluster).keys() == given | more
    assert "$$RELAYSWARM_PEER_ID" in site()["healthcheck"]["test"][1]
    (named,) = (one for one in container()["env"] if one["name"] == "RELAYSWARM_HEALTH_TLS_NAME")
    assert named["valueFrom"]["configMapKeyRef"] == {"name": "site", "key": "RELAYSWARM_PEER_ID"}


def test_the_sites_options_are_in_a_file_of_its_own() -> None:
    assert site()["env_file"] == [f"{FOLDER}/site.env"]
    assert container()["envFrom"] == [{"configMapRef": {"name": "site"}}]
    variables = values(SITE_ENV.read_text(encoding="utf-8"))
    assert only("site", "ConfigMap")["data"] == variables
    told = options(variables)
    assert {"peer --id", "peer --coordinator"} <= told.keys()
    fixed = options(site()["environment"]).keys() | {f"peer {one}" for one in flags_fixed()}
    assert not told.keys() & fixed  # what is fixed would win


def flags_fixed() -> set[str]:
    return set(flags(site()["command"]))


def test_the_documentation_shows_options_that_there_are() -> None:
    text = (ROOT / "docs/sites.md").read_text(encoding="utf-8")
    shown = [
        block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "_ID=" in block
    ]
    assert shown
    for block in shown:
        assert {"peer --id", "peer --coordinator"} <= options(values(block)).keys()


def test_keys_and_token_are_secrets() -> None:
    assert set(site()["secrets"]) == SECRETS
    assert compose()["secrets"] == {one: {"file": f"{FOLDER}/{one}"} for one in SECRETS}
    read = {
        value for name, value in site()["environment"].items() if "FILE" in name or "TLS" in name
    }
    assert read == {f"/run/secrets/{one}" for one in SECRETS}
    volumes = {one["name"]: one for one in pod()["volumes"]}
    mounts = {one["name"]: one["mountPath"] for one in container()["volumeMounts"]}
    secret = [mounts[name] for name, one in volumes.items() if "secret" in one]
    named = [one["value"] for one in container()["env"] if one.get("value", "").startswith("/")]
    assert {Path(one).name for one in named} == SECRETS
    assert {str(Path(one).parent) for one in named} == set(secret)


def test_data_and_settings_can_only_be_read() -> None:
    own = {one.removesuffix(":ro").rpartition(":")[2]: one for one in site()["volumes"]}
    cluster = {one["mountPath"]: one for one in container()["volumeMounts"]}
    for place in ("/data", "/etc/relayswarm"):
        assert own[place].endswith(":ro")
        assert cluster[place]["readOnly"] is True
    assert flags(site()["command"])["--data-dir"] == "/data"
    (data,) = (one for one in pod()["volumes"] if one["name"] == cluster["/data"]["name"])
    assert data["persistentVolumeClaim"] == {"claimName": "data", "readOnly": True}
    state = flags(site()["command"])["--state-dir"]
    kept = [one for one in own if state.startswith(one)]
    assert [own[one] for one in kept] == ["state:/var/lib/relayswarm"]
    assert "state" in compose()["volumes"]


def test_it_is_hardened_and_built_as_the_peers_of_a_swarm() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    peer = yaml.safe_load(text)["services"]["peer"]
    own = site()
    for key in ("image", "read_only", "tmpfs", "cap_drop", "security_opt"):
        assert own[key] == peer[key]
    assert own["build"] == {**peer["build"], "context": ".."}
    assert "INSECURE" not in str(own) + str(container())


def test_a_policy_lets_out_what_the_options_name() -> None:
    """To any address, but to ports of coordinators and peers, or of nodes, only."""
    out, names = only("site", "NetworkPolicy")["spec"]["egress"]
    opened = [range(one["port"], one.get("endPort", one["port"]) + 1) for one in out["ports"]]
    variables = values(SITE_ENV.read_text(encoding="utf-8"))
    ports = {int(value.rpartition(":")[2]) for value in variables.values() if ":" in value}
    assert {port for port in ports if not any(port in one for one in opened)} == set()
    assert {one["port"] for one in names["ports"]} == {53}
    (port,) = only("site", "Service", "peer-outside")["spec"]["ports"]
    assert variables["RELAYSWARM_PEER_ADVERTISE"].endswith(f":{port['nodePort']}")
