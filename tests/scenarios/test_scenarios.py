"""Behaviour as text: each script here, above its line of dashes, has the trace below it.

A script's lines are
    algorithm NAME [OPTION=VALUE ...]     of the run
    tree U-V ... | graph NAME N           peers are a, b, c ...; more trees, more lines
    steps N                               of the run, and deadline SECONDS
    targets NUMBER ...                    of each peer; all start at 0, the rate is 1/2
    slow PEER SECONDS                     for its local steps, in place of 1
    loses FROM TO STEP known|silent       that message is lost
    late FROM TO STEP SECONDS             that message takes so long, in place of a millisecond
    view NUMBER from STEP at SECONDS tree U-V ...
and the trace is what each peer was told and decided, and its model at the end; that a message was
accepted is left out. To accept what changed: REWRITE=1 pytest tests/scenarios; then read the
difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from coordinator.gossip_weights import metropolis_hastings
from coordinator.graphs import build_graph
from coordinator.trees import Tree
from peer.algorithms.core import (
    LIVE,
    Algorithm,
    Effect,
    Epoch,
    Event,
    Head,
    PeerId,
    Run,
    SendDone,
    Verdict,
    View,
)
from peer.simulator.event_log import Logged, describe_effect, describe_event
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.world import Delivery, World

NAMES = "abcdefgh"
DASHES = "----"
SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


class Script:
    """What a script says, line by line."""

    def __init__(self, text: str) -> None:
        self.algorithm, self.options = "", dict[str, Any]()
        self.trees: list[Tree] = []
        self.graph: list[str] = []
        self.run = {"total_steps": 1.0, "deadline_s": 30.0}
        self.targets: list[Fraction] = []
        self.seconds: dict[PeerId, float] = {}
        self.fates: dict[tuple[PeerId, PeerId, int], Sequence[Delivery]] = {}
        self.later_views: list[tuple[float, list[View]]] = []
        for line in text.splitlines():
            word, *rest = line.split("#")[0].split() or [""]
            if word:
                getattr(self, f"_{word}")(*rest)

    def first_views(self) -> list[View]:
        if not self.graph:
            return views(self.trees, name=NAMES.__getitem__)
        graph = build_graph(self.graph[0], int(self.graph[1]))
        return views(graph=graph, weights=metropolis_hastings(graph), name=NAMES.__getitem__)

    def link(self, sender: PeerId, to: PeerId, head: Head) -> Sequence[Delivery]:
        return self.fates.get((sender, to, head.step), (Delivery(0.001),))

    def _algorithm(self, name: str, *options: str) -> None:
        self.algorithm = name
        pairs = (option.split("=") for option in options)
        self.options = {key: {"true": True, "false": False}.get(v, v) for key, v in pairs}

    def _tree(self, *edges: str) -> None:
        self.trees.append(tree(edges))

    def _graph(self, *words: str) -> None:
        self.graph = list(words)

    def _steps(self, count: str) -> None:
        self.run["total_steps"] = int(count)

    def _deadline(self, seconds: str) -> None:
        self.run["deadline_s"] = float(seconds)

    def _targets(self, *numbers: str) -> None:
        self.targets = [Fraction(number) for number in numbers]

    def _slow(self, peer: PeerId, seconds: str) -> None:
        self.seconds[peer] = float(seconds)

    def _loses(self, sender: PeerId, to: PeerId, step: str, how: str) -> None:
        known = {"known": (Delivery(0.001, lost=True),), "silent": ()}
        self.fates[sender, to, int(step)] = known[how]

    def _late(self, sender: PeerId, to: PeerId, step: str, seconds: str) -> None:
        self.fates[sender, to, int(step)] = (Delivery(float(seconds)),)

    def _view(self, number: str, _: str, step: str, __: str, at: str, ___: str, *e: str) -> None:
        epoch = Epoch(1, int(number))
        new = views([tree(e)], epoch=epoch, effective_step=int(step), name=NAMES.__getitem__)
        self.later_views.append((float(at), new))


def tree(edges: Sequence[str]) -> Tree:
    pairs = [tuple(NAMES.index(peer) for peer in edge.split("-")) for edge in edges]
    return Tree(len(pairs) + 1, tuple((u, v) for u, v in pairs))


def play(text: str) -> Iterator[str]:
    """The trace of a script, line by line."""
    script, lines = Script(text), list[str]()

    def wrap(peer: PeerId, algorithm: Algorithm) -> Algorithm:
        def log(now: float, event: Event, effects: list[Effect]) -> None:
            if isinstance(event, SendDone) and event.verdict is Verdict.ACCEPTED and not effects:
                return
            lines.append(f"{now:.3f} {peer} {describe_event(event)}")
            lines.extend(f"          {describe_effect(effect)}" for effect in effects)

        return Logged(algorithm, log)

    swarm = ExactSwarm(
        script.algorithm,
        script.first_views(),
        Run(**script.run),  # type: ignore[arg-type]
        Problem([(Fraction(0),)] * len(script.targets), [(t,) for t in script.targets]),
        options=script.options,
        duration_s=lambda i, step: script.seconds.get(NAMES[i], 1.0),  # noqa: ARG005
        world=World(script.link),
        wrap=wrap,
    )
    for at, new in script.later_views:
        swarm.world.at(at, publication(swarm, new))
    swarm.run()
    yield from lines
    for node, body in zip(swarm.nodes, swarm.bodies, strict=True):
        yield f"{node.peer} ends with {body.vectors[LIVE][0]}"


def publication(swarm: ExactSwarm, new: list[View]) -> Callable[[], None]:
    return lambda: swarm.world.publish(new)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_trace_is_as_expected(path: Path) -> None:
    script, _, expected = path.read_text(encoding="utf-8").partition(f"{DASHES}\n")
    trace = "".join(f"{line}\n" for line in play(script))
    if os.environ.get("REWRITE"):
        path.write_text(f"{script}{DASHES}\n{trace}", encoding="utf-8")
    else:
        assert trace == expected


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 3
