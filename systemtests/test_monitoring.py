"""Every panel of the dashboard, asked of a real Prometheus that scrapes live swarms.

`make test-monitoring` runs this. The Prometheus has the rules and the scrape jobs of deploy/, with
targets on loopback in the place of compose's names.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from systemtests.prometheus import Prometheus, until

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/swarm.json").read_text(encoding="utf-8"))
RELAYSWARM = (sys.executable, "-m", "peer.cli")
PATIENCE_S = 240.0
pytestmark = pytest.mark.timeout(900)
SPAN_S, STEP_S = 60.0, 5.0
RATE_INTERVAL = "20s"  # as Grafana chooses it at a scrape interval of 5 s
NEEDS_GPU = {"GPU memory"}

RUNS = {
    # lr is small: nobody is done, nor NaN, before all has been asked
    "relay": ("peers=3", "topology.graph=chain", "transport.deadline_s=2"),
    "behind": ("peers=2", "topology.graph=chain"),  # a firewall: no peer is scraped
    "pairs": ("peers=2", "algorithm.name=swarmsgd", "transport.wire_format=bfloat16"),
}
BEHIND = "behind"
COMMON = ("steps=1000000", "evaluation.every=20", "checkpoint.every=20", "coordinator.lease_s=3")


class Started:
    """Coordinators and peers of all runs, and where their metrics are."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self.coordinators: list[str] = []
        self.peers: dict[str, str] = {}  # those that are scraped
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def run(self, run_id: str, settings: tuple[str, ...]) -> None:
        flags = [f"--set={one}" for one in (f'run_id="{run_id}"', *settings, *COMMON)]
        listen = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
        _, event = self._start("coordinator", *listen, *flags)
        self.coordinators.append(event["metrics_address"])
        count = int(re.sub(r"\D", "", settings[0]))
        for k in range(count):
            state = self._folder / run_id / f"peer-{k}"
            process, started = self._start(
                "peer", "--coordinator", event["address"], "--state-dir", str(state)
            )
            if run_id != BEHIND:
                self.peers[f"{run_id}/{started['peer']}"] = started["metrics_address"]
            self.processes[f"{run_id}/{started['peer']}"] = process

    def _start(self, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        process = self._stack.enter_context(
            subprocess.Popen(
                (*RELAYSWARM, *arguments, "--json"),
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        )
        self._stack.callback(process.kill)
        assert process.stdout
        first: dict[str, Any] = json.loads(process.stdout.readline())
        threading.Thread(target=_read_on, args=(process.stdout,), daemon=True).start()
        return process, first


def _read_on(events: IO[str]) -> None:
    """Let nobody wait for a pipe that is full."""
    with suppress(ValueError):  # closed, at the end
        for _ in events:
            pass


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with ExitStack() as stack:
        swarms = Started(stack, tmp_path_factory.mktemp("state"))
        for run_id, settings in RUNS.items():
            swarms.run(run_id, settings)
        yield swarms


@pytest.fixture(scope="module")
def prometheus(started: Started, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    config["rule_files"] = [str(ROOT / "deploy/prometheus/rules.yml")]
    targets = {
        "relayswarm-coordinator": started.coordinators,
        "relayswarm-peer": list(started.peers.values()),
    }
    config["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": targets[job["job_name"]]}]}
        for job in config["scrape_configs"]
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            (
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ),
            stderr=log,
        )
    try:
        yield Prometheus(f"http://{address}")
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def variables(prometheus: Prometheus) -> Callable[[], dict[str, list[str]]]:
    """Values of the dashboard's variables, in its order: later ones follow from earlier ones."""

    def ask() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for one in DASHBOARD["templating"]["list"]:
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", one["query"])
            assert match, one["query"]
            found[one["name"]] = prometheus.label_values(filled(match[1], found), match[2])
        return found

    return ask


def filled(expression: str, values: dict[str, list[str]]) -> str:
    """With Grafana's variables put in; of several values it makes an alternative."""
    expression = expression.replace("$__rate_interval", RATE_INTERVAL)
    for name, given in values.items():
        expression = re.sub(rf"\${name}\b", lambda _, g=given: "|".join(g), expression)
    assert "$" not in expression, expression
    return expression


def panels() -> list[tuple[str, str, str]]:
    """Title, expression and kind of every query."""
    return [
        (panel["title"], target["expr"], "instant" if target.get("instant") else "range")
        for panel in DASHBOARD["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    ]


def test_all_targets_are_scraped(prometheus: Prometheus, started: Started) -> None:
    wanted = {*started.coordinators, *started.peers.values()}
    up = until(
        lambda: (now := prometheus.targets()) and set(now.values()) == {"up"} and now,
        "all targets are up",
        PATIENCE_S,
    )
    assert set(up) == wanted


def test_variables_have_values(
    prometheus: Prometheus, started: Started, variables: Callable[[], dict[str, list[str]]]
) -> None:
    del prometheus
    until(lambda: all(variables().values()), "every variable has values", PATIENCE_S)
    found = variables()
    assert found["run"] == sorted(RUNS)
    assert set(found["coordinator"]) == set(started.coordinators)
    assert found["peer"] == ["peer-0", "peer-1", "peer-2"]
    assert {"accuracy", "loss"} <= set(found["metric"])


def test_every_panel_shows_something(
    prometheus: Prometheus, started: Started, variables: Callable[[], dict[str, list[str]]]
) -> None:
    """With a peer that is killed while the others train, so that there is something to be seen."""
    until(
        lambda: len(prometheus.query("relayswarm_peer_steps_total > 20")) == len(started.peers),
        "all train",
        PATIENCE_S,
    )
    chosen = variables()  # while all are there
    started.processes["relay/peer-2"].send_signal(signal.SIGKILL)
    wanted = [
        (title, expression.replace("$metric", metric), kind)
        for title, expression, kind in panels()
        for metric in (chosen["metric"] if "$metric" in expression else [""])
    ]
    empty: dict[str, str] = {}

    def all_show() -> bool:
        empty.clear()
        for title, expression, kind in wanted:
            text = filled(expression, chosen)
            shown = (
                prometheus.query(text)
                if kind == "instant"
                else prometheus.range(text, SPAN_S, STEP_S)
            )
            if not shown and title not in NEEDS_GPU:
                empty[title] = text
        return not empty

    try:
        until(all_show, "every panel shows something", PATIENCE_S)
    except AssertionError as error:
        raise AssertionError(f"{error}; empty: {json.dumps(empty, indent=2)}") from None
    names = {labels["peer"] for labels, _ in prometheus.query(filled(steps_by_peer(), chosen))}
    assert names >= {"peer-0", "peer-1"}


def steps_by_peer() -> str:
    (expression,) = (one for title, one, _ in panels() if title == "Steps")
    return expression


def test_choosing_a_run_leaves_the_others_out(prometheus: Prometheus) -> None:
    chosen = choices(prometheus, run=["pairs"], metric=["loss"])
    assert len(chosen["coordinator"]) == 1
    assert chosen["peer"] == ["peer-0", "peer-1"]
    assert len(prometheus.query(filled(steps_by_peer(), chosen))) == 2


def choices(prometheus: Prometheus, **chosen: list[str]) -> dict[str, list[str]]:
    """Values of all variables, when some have been chosen."""
    for one in DASHBOARD["templating"]["list"]:
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", one["query"])
        assert match
        if one["name"] not in chosen:
            chosen[one["name"]] = prometheus.label_values(filled(match[1], chosen), match[2])
    return chosen


def test_peers_that_cannot_be_scraped_are_shown(prometheus: Prometheus) -> None:
    chosen = choices(prometheus, run=[BEHIND], metric=["loss"])
    assert chosen["peer"] == ["peer-0", "peer-1"]
    (text,) = (one for title, one, _ in panels() if title == "Evaluation: $metric" and "avg" in one)
    for expression in (steps_by_peer(), text):
        until(
            lambda e=expression: prometheus.query(filled(e, chosen)), "they are shown", PATIENCE_S
        )
    assert len(prometheus.query(filled(steps_by_peer(), chosen))) == 2
    until(
        lambda: prometheus.query(f'relayswarm:steps:rate1m{{run="{BEHIND}"}} > 0'),
        "they are in the records",
        PATIENCE_S,
    )


def test_nobody_is_counted_twice(prometheus: Prometheus) -> None:
    """Of the run `pairs` both peers and coordinator are scraped."""
    assert len(prometheus.query('relayswarm_member_steps_total{run="pairs"}')) == 2
    chosen = choices(prometheus, run=["pairs"], metric=["loss"])
    (watched,) = (one for title, one, _ in panels() if title == "Peers watched")
    assert [value for _, value in prometheus.query(filled(watched, chosen))] == [2]
    assert len(prometheus.query('relayswarm:peer_training_loss{run="pairs"}')) == 2


def test_the_epochs_are_marked(
    prometheus: Prometheus, variables: Callable[[], dict[str, list[str]]]
) -> None:
    """The killed peer's swarm has gone on in a new one."""
    (annotation,) = DASHBOARD["annotations"]["list"]
    chosen = variables()
    until(
        lambda: prometheus.range(filled(annotation["expr"], chosen), 300.0, 5.0),
        "an epoch is marked",
        PATIENCE_S,
    )


def test_the_alert_of_the_killed_peer_fires(prometheus: Prometheus) -> None:
    until(
        lambda: prometheus.alerts().get("RelayswarmPeerLost") == "firing",
        "the alert fires",
        PATIENCE_S,
    )
