from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator.views import lay_out
from peer.localswarm import render
from peer.localswarm.display import JsonLines, LiveTable, PlainLines, choose_display
from peer.progress import Progress
from peer.views import peer_ids, topology_event
from relayswarm import config as run_config

REPORT = {
    "peers": [
        {
            "id": f"peer-{k}",
            "metrics": {"loss": 0.25, "accuracy": accuracy},
            "messages_expected": 40,
            "messages_missed": k,
            "bytes_sent": 12_300_000,
        }
        for k, accuracy in enumerate([0.9, 0.8])
    ],
    "swarm_metrics": {"step": 9, "peers": 2, "metrics": {"loss": 0.25, "accuracy": None}},
    "worst": {"accuracy": 0.8},
    "mean": {"accuracy": 0.85},
    "consensus_model": {"accuracy": 0.86},
    "baseline": {"accuracy": 0.95, "batch_size": 64},
    "baseline_small_batch": None,
}


def made_up_config(peers: int = 3, tree: str = "spanning-tree") -> run_config.RunConfig:
    graph = "chain" if tree == "spanning-tree" else tree
    return run_config.parse(
        f"peers = {peers}\nsteps = 10\n[topology]\ngraph = '{graph}'\ntree = '{tree}'"
    )


def progress_of(peers: int = 3, tree: str = "spanning-tree") -> Progress:
    config = made_up_config(peers, tree)
    progress = Progress(config, peer_ids(peers))
    progress.observe(topology_event(lay_out(config, peer_ids(peers))))
    return progress


def step(peer: str, number: int, loss: float | None = 0.5) -> dict[str, Any]:
    return {
        "event": "step",
        "peer": peer,
        "step": number,
        "loss": loss,
        "models_counted": 3,
        "swarm_size": 3,
        "bytes_sent": 85_000,
    }


def swarm(peer: str, number: int, peers: int = 3) -> dict[str, Any]:
    means = {"metrics": {"loss": 0.5 / number}, "weights": {"loss": 3}, "measured_by": {"loss": 3}}
    return {"event": "swarm_metrics", "peer": peer, "step": number, "peers": peers, **means}


def text_of(*renderables: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for renderable in renderables:
        console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_live_view_shows_each_peer_and_the_tree() -> None:
    progress = progress_of()
    progress.observe(step("peer-0", 4, loss=0.123456))
    progress.observe({"event": "peer_exited", "peer": "peer-2", "exit_code": 1, "stderr": []})
    lines = [line.rstrip() for line in text_of(render.live_view(progress)).splitlines()]
    assert lines[0].endswith("peer-0  root of the tree")
    assert lines[1].replace("━", "").split() == [
        *("peer-0", "5/10", "0.1235", "3", "of", "3", "85.0", "kB", "training"),
        *("└──", "peer-1"),
    ]
    assert lines[1].count("━") == 8  # of 16: half of the steps
    assert "exited (1)" in lines[3]
    assert lines[2].endswith("    └── peer-2")
    assert lines[4].startswith("epoch 1 (quorum): tree of 3 peers, root peer-0, diameter 2")


def test_the_live_view_shows_what_the_peers_know_of_the_swarm() -> None:
    progress = progress_of()
    assert "swarm at" not in text_of(render.live_view(progress))
    for event in (swarm("peer-0", 2), swarm("peer-1", 4), swarm("peer-2", 4, peers=2)):
        progress.observe(event)
    line = "swarm at step 4: loss 0.125 (mean of 3 peers)"
    assert text_of(render.live_view(progress)).splitlines()[-1].rstrip() == line


def test_a_topology_says_where_the_config_could_not_be_followed() -> None:
    config = run_config.parse("peers = 5")
    event = topology_event(lay_out(config, peer_ids(5)))
    (note,) = event["notes"]
    assert note.startswith("no graph 'random-regular' of these 5 peers")
    assert render.topology_line(event).endswith(
        f"learning-rate factor {event['lr_factor']}; {note}"
    )
    assert event["detail"] == f"quorum; {note}"


def test_the_live_view_says_who_is_waited_for() -> None:
    progress = Progress(made_up_config(8), peer_ids(8))
    members = [f"peer-{k}" for k in (0, 1, 2, 4, 6, 7)]
    progress.observe({"event": "waiting", "present": 6, "needed": 8, "members": members})
    assert "waiting for 2 of 8 peers: peer-3, peer-5\n" in text_of(render.live_view(progress))


def test_a_large_swarm_is_shown_without_its_tree() -> None:
    assert "root of the tree" not in text_of(render.live_view(progress_of(17)))


@pytest.mark.parametrize("peers", [2, 3, 7, 8])
def test_both_of_two_trees_are_drawn_whole(peers: int) -> None:
    topology = progress_of(peers, "double-binary-trees").topology
    assert topology is not None
    for tree in render.trees(topology):
        text = text_of(tree)
        assert all(f"peer-{k}" in text for k in range(peers))
        assert len(text.splitlines()) == peers


def test_a_swarm_of_one_is_a_tree_of_one() -> None:
    topology = progress_of(1).topology
    assert topology is not None
    assert [text_of(tree).strip() for tree in render.trees(topology)] == [
        "peer-0  root of the tree"
    ]


def test_the_summary_holds_the_peers_against_the_baseline() -> None:
    rows = [line.split() for line in text_of(render.summary(REPORT, Path("there"))).splitlines()]
    assert ["peer-1", "0.25", "80.0%", "1", "of", "40", "12.3", "MB"] in rows
    assert ["worst", "peer", "80.0%"] in rows
    assert ["their", "mean", "model", "86.0%"] in rows
    assert ["centralized,", "batch", "64", "95.0%"] in rows
    line = "swarm at step 9: loss 0.25, accuracy not finite (mean of 2 peers)"
    assert line.split() in rows
    assert rows[-1] == ["report:", "there"]
    assert sum(row[:1] == ["centralized,"] for row in rows) == 1


def test_json_lines_are_events_and_nothing_else() -> None:
    stream = io.StringIO()
    with JsonLines(stream) as display:
        display.event({"event": "step", "peer": "peer-0"})
        display.event(None)
        display.baseline("centralized", 1, 1)
        display.finished({"run_id": "x"}, Path("there"))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "step", "peer": "peer-0"},
        {"event": "finished", "report": {"run_id": "x"}},
    ]


def test_a_run_outlives_whoever_read_its_json() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            del text
            raise BrokenPipeError

    display = JsonLines(Closed())
    display.event({"event": "step"})
    display.event({"event": "step"})


def test_plain_lines_come_now_and_then() -> None:
    progress = progress_of()
    console = Console(file=io.StringIO(), width=120)
    with PlainLines(progress, console) as display:
        display.event({"event": "coordinator_started", "address": "127.0.0.1:5"})
        display.event(progress.topology)
        for number in range(10):
            for peer in peer_ids(3):
                event = step(peer, number)
                progress.observe(event)
                display.event(event)
            if number in (2, 5):
                progress.observe(swarm("peer-1", number))
                display.event(swarm("peer-1", number))
        exited = {"event": "peer_exited", "peer": "peer-1", "exit_code": -9, "stderr": ["[x] y"]}
        display.event(exited)
        display.baseline("centralized, batch 96", 9, 10)
        display.baseline("centralized, batch 96", 10, 10)
        display.finished(REPORT, Path("there"))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "coordinator at 127.0.0.1:5"
    assert lines[2:5] == ["peer-0  root of the tree", "└── peer-1", "    └── peer-2"]
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 10
    assert steps[-1].startswith("step 10 of 10: training loss 0.5 to 0.5, at least 3 of 3 models")
    said = [line for line in lines if line.startswith("swarm ") and line not in lines[-3:]]
    assert [line.split()[3] for line in said] == ["2:", "5:"]  # once each
    at = lines.index("peer-1 ended before its time (exit code -9); its log ends with:")
    assert lines[at + 1] == "    [x] y"
    assert lines.count("centralized, batch 96: 10 steps done") == 1
    assert lines[-1] == "report: there"


def test_the_live_table_keeps_its_last_state_on_the_screen() -> None:
    progress = progress_of()
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with LiveTable(progress, console) as display:
        event = step("peer-0", 9)
        progress.observe(event)
        display.event(event)
        display.event({"event": "coordinator_exited", "exit_code": 1, "stderr": []})
        display.baseline("centralized, batch 96", 10, 10)
        display.finished(REPORT, Path("there"))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "10/10" in shown
    assert "coordinator ended before its time (exit code 1)" in shown
    assert "centralized, batch 96" in shown
    assert "report: there" in shown


def test_the_display_suits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    progress = progress_of()
    assert isinstance(choose_display(progress, as_json=True), JsonLines)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(choose_display(progress, as_json=False), PlainLines)
