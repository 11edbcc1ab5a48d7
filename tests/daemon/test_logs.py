"""What daemons log where nobody watches a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def test_each_event_that_matters_is_one_line_of_json(daemons: Callable[..., Any]) -> None:
    json_log = ("--log-format", "json")
    settings = ("task.name=quadratics", "topology.graph=chain", "peers=2", "steps=20")
    swarm = daemons(*settings, "evaluation.every=10", start=False, flags=json_log)
    swarm.add_all(*json_log)
    swarm.finish()
    swarm.coordinator.until("finished")

    peer = [json.loads(line) for line in swarm.peers["peer-1"].log.splitlines()]
    peer = [line for line in peer if line["event"] not in ("waiting", "log")]
    started, topology, evaluation, last, finished = peer
    told = ["peer_started", "topology", "evaluation", "evaluation", "peer_finished"]
    assert [line["event"] for line in peer] == told
    assert (started["peer"], topology["members"]) == ("peer-1", 2)
    assert [evaluation[key] for key in ("run", "peer", "step")] == ["run", "peer-1", 10]
    assert evaluation["epoch"] == topology["epoch"] == last["epoch"]
    assert evaluation["metrics"].keys() >= {"suboptimality"}
    assert (last["step"], finished["steps"]) == (20, 20)

    coordinator = [json.loads(line) for line in swarm.coordinator.log.splitlines()]
    told = [line["event"] for line in coordinator]
    assert told[0] == "coordinator_started"
    assert told[-1] == "finished"
    assert told.count("member_joined") == told.count("member_finished") == 2
    (topology,) = (line for line in coordinator if line["event"] == "topology")
    assert (topology["run"], topology["epoch"]) == ("run", evaluation["epoch"])
    assert "edges" not in topology
