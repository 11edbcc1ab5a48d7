"""Swarms of the simulator learn small data of each built-in task that reads files."""

from pathlib import Path
from typing import Any

import pytest

from peer.simulator.run import simulate
from relayswarm.config import parse

TASKS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "cifar-10, resnet-20-evonorm": (
        "cifar-10",
        "cifar_batches",
        ("task.options.network=resnet-20-evonorm", "optimizer.lr=0.02"),
    ),
    "image-folder, resnet-20-evonorm": (
        "image-folder",
        "image_folder",
        ("task.options={classes = 2, size = 32}", "optimizer.lr=0.02"),
    ),
    "text-classification": (
        "text-classification",
        "text_table",
        ("task.options={length = 16, width = 16, heads = 2, layers = 1}", "optimizer.lr=0.01"),
    ),
    "char-lm": (
        "char-lm",
        "short_text",
        ("task.options={length = 16, width = 16, heads = 2, layers = 1}", "optimizer.lr=0.02"),
    ),
}


@pytest.mark.parametrize(("name", "data", "settings"), TASKS.values(), ids=TASKS)
def test_a_swarm_learns(
    request: pytest.FixtureRequest, name: str, data: str, settings: tuple[str, ...]
) -> None:
    folder: Path = request.getfixturevalue(data)
    losses: dict[str, list[float]] = {}

    def note(event: Any) -> None:
        if event["event"] == "step":
            losses.setdefault(event["peer"], []).append(event["loss"])

    shape = (
        "peers=2",
        "topology.graph=chain",
        "steps=16",
        "data.min_samples=4",
        "deterministic=true",
    )
    settings = (f"task.name={name}", *shape, "data.batch_size=4", *settings)
    found = simulate(parse("", settings), folder, note)
    for own in losses.values():
        assert sum(own[-4:]) < 0.8 * sum(own[:4])
    assert all(peer.metrics["accuracy"] > 0.4 for peer in found.peers)
