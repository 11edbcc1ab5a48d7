"""The example of docs/own-loop.md as real programs: a coordinator, and two of them."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from tests.conftest import ended

Start = Callable[..., "subprocess.Popen[str]"]


def test_the_page_shows_the_example_as_it_is(
    root: Path, blocks: Callable[[str], list[tuple[Path, str]]]
) -> None:
    (shown,) = [text for page, text in blocks("python") if page.name == "own-loop.md"]
    assert shown == (root / "examples" / "own_loop.py").read_text(encoding="utf-8")


@pytest.mark.timeout(700)  # three processes import torch, perhaps on a busy machine
def test_two_plain_loops_learn_from_each_other(
    root: Path, start: Start, coordinator: Callable[..., tuple[str, IO[str]]]
) -> None:
    settings = ("task.name=own-loop", "peers=2", "steps=300", "data.alpha=0.1")
    address, _ = coordinator(*settings)
    example = str(root / "examples" / "own_loop.py")
    said = [ended(one) for one in [start(example, address) for _ in range(2)]]
    found = [re.fullmatch(r"(peer-\d) accuracy (\S+), (.*)\n", text) for text in said]
    assert {one[1] for one in found if one} == {"peer-0", "peer-1"}
    accuracies = [float(one[2]) for one in found if one]
    assert min(accuracies) > 0.85  # a shard has mostly a few of the ten digits
    assert abs(accuracies[0] - accuracies[1]) < 0.03
    means = [ast.literal_eval(one[3])["accuracy"] for one in found if one]
    assert means == pytest.approx([sum(accuracies) / 2] * 2, abs=1e-3)


@pytest.mark.timeout(700)
def test_a_program_that_forgets_to_leave_ends(
    start: Start, coordinator: Callable[..., tuple[str, IO[str]]]
) -> None:
    """Nothing that runs beside it keeps the process alive."""
    address, _ = coordinator("task.name=own-loop", "peers=1", "steps=3")
    program = start(
        "-c",
        "import sys, torch, relayswarm\n"
        "model = torch.nn.Linear(1, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "swarm = relayswarm.Swarm(model, optimizer, sys.argv[1])\n"
        "swarm.step()\n"
        "print(swarm.step_number)\n",
        address,
    )
    assert ended(program) == "1\n"
