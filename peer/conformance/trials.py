"""Simulated swarms with exact arithmetic to try an algorithm in, each made from its name alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias, cast

from coordinator.gossip_weights import metropolis_hastings
from coordinator.graphs import build_graph
from coordinator.trees import Tree
from peer.algorithms.core import LIVE, Algorithm, CoreState, Effect, Event, PeerId, Run
from peer.simulator.event_log import Logged
from peer.simulator.exact import ExactBody, ExactVectors, Vector, views
from peer.simulator.links import SeededLink
from peer.simulator.world import Node, World

STEPS = 8
SEEDS = 5
EVENTS_PER_STEP = 1000  # of each peer: far more than any method needs

Maker: TypeAlias = Callable[[Run], Algorithm]


@dataclass(frozen=True)
class Condition:
    """What the network does to messages; the rest is as in `SeededLink` and `World`."""

    link: Mapping[str, Any]
    ordered: bool = True
    deadline_s: float = 2.0  # of virtual time

    @property
    def loses(self) -> bool:
        """Whether a message may be given up, because it is lost or comes too late."""
        return self.deadline_s < PATIENT_S


PATIENT_S = 1e6
CALM = "all arrives"
CONDITIONS = {
    CALM: Condition({}, deadline_s=PATIENT_S),
    "delays": Condition({"delay_s": (0.001, 3.0)}, deadline_s=PATIENT_S),
    "known losses": Condition({"drop": 0.2}),
    "silent losses": Condition({"drop": 0.2, "known": False}),
    "duplicates": Condition({"duplicate": 0.4}),
    "late messages": Condition({"delay_s": (0.001, 3.0)}),
    "overtaking messages": Condition({"delay_s": (0.001, 3.0), "duplicate": 0.2}, ordered=False),
    "everything": Condition(
        {"delay_s": (0.001, 3.0), "drop": 0.2, "known": False, "duplicate": 0.2}, ordered=False
    ),
}


@dataclass(frozen=True)
class Trial:
    """One simulated run: a condition, so many peers, a seed."""

    condition: str
    peers: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.condition}, {self.peers} peers, seed {self.seed}"

    def swarm(self, make: Maker, stopped: Mapping[PeerId, Stopped] | None = None) -> Swarm:
        """The swarm at its beginning, or where it was stopped."""
        return Swarm(self, CONDITIONS[self.condition], make, stopped or {})


def trials(peers: int) -> Iterator[Trial]:
    """All of them, in swarms of so many peers and of twice as many."""
    for condition in CONDITIONS:
        for seed in range(SEEDS):
            yield Trial(condition, peers * (1 + seed % 2), seed)


@dataclass(frozen=True)
class Stopped:
    """A peer where its swarm was stopped: what its algorithm kept, and all registers."""

    state: CoreState
    registers: Mapping[str, Vector]


@dataclass
class Member:
    """A peer of a trial, and all that happened to it: (now, event, effects)."""

    node: Node
    body: ExactBody
    log: list[tuple[float, Event, list[Effect]]]
    models: list[Vector]  # after each averaging
    start: Vector


class Swarm:
    """Peers on a ring and on a random tree. In coordinate 0 they learn; coordinate 1 is 1 in every
    model, and training leaves it alone."""

    def __init__(
        self,
        trial: Trial,
        condition: Condition,
        make: Maker,
        stopped: Mapping[PeerId, Stopped],
    ) -> None:
        self.condition = condition
        self.run = Run(STEPS, deadline_s=condition.deadline_s, seed=trial.seed)
        self.members: dict[PeerId, Member] = {}
        self.goes_on = False  # when it was stopped
        self._draw = random.Random(trial.seed)
        link = SeededLink(trial.seed, **condition.link)
        self.world = World(link, ordered=condition.ordered, cancels=condition.ordered)
        graph = build_graph("ring", trial.peers)
        tree = _random_tree(trial.peers, self._draw)
        self.views = views([tree], graph, metropolis_hastings(graph))
        for view in self.views:
            self._add(view.me, make(self.run))
        for peer, one in stopped.items():
            cast(Logged, self.members[peer].node.algorithm).inner.resume(one.state)
            self.members[peer].body.vectors.registers.update(one.registers)
        if stopped:
            step = int(next(iter(stopped.values())).state.values["step"])
            self.views = [replace(view, resumes=True, effective_step=step) for view in self.views]
        self.world.publish(self.views)

    def go(self) -> None:
        """Until all peers have finished, nothing can come any more, or it goes on without end."""
        most = EVENTS_PER_STEP * STEPS * len(self.members)
        self.world.run(lambda: self.world.all_finished() or self._events() > most)
        self.goes_on = self._events() > most

    def _events(self) -> int:
        return sum(len(member.log) for member in self.members.values())

    def _add(self, peer: PeerId, algorithm: Algorithm) -> None:
        draw = self._draw
        start, target = (Fraction(draw.randrange(-9, 10)) for _ in range(2))
        model = (start, Fraction(1))
        pace = random.Random(draw.randrange(2**32))
        body = ExactBody(
            ExactVectors(model, algorithm.registers),
            (target, Fraction(0)),
            Fraction(1, 2),
            curvature=(Fraction(1), Fraction(0)),
            duration_s=lambda _: pace.choice([0.1, 1.0, 5.0]),
        )
        log: list[tuple[float, Event, list[Effect]]] = []
        logged = Logged(algorithm, lambda *entry: log.append(entry))
        node = self.world.add(peer, logged, body)
        member = Member(node, body, log, [], model)
        node.on_averaged = lambda _: member.models.append(body.vectors[LIVE])
        self.members[peer] = member


def _random_tree(n: int, draw: random.Random) -> Tree:
    order = draw.sample(range(n), n)
    return Tree(n, tuple((order[draw.randrange(k)], order[k]) for k in range(1, n)))
