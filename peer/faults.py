"""The fault plan: what befalls the messages and peers of a run, for experiments.

A pure function of the run's seed and the message's place in the run, so that daemons, each
deciding for itself, and the simulator lose the same messages, and a run can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

from relayswarm.config import CrashFault, EdgeFaults, FaultsConfig, RunConfig
from relayswarm.errors import ConfigError

_MANTISSA_BITS = 53  # more would round up to 1 now and then, and a sure loss would not be one


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a message: for each copy that arrives, how much longer it takes."""

    delays_s: tuple[float, ...]  # empty: lost

    @property
    def lost(self) -> bool:
        return not self.delays_s


class FaultPlan:
    """The faults of one run. `announced`: whether losses are told to the receiver."""

    def __init__(self, faults: FaultsConfig, seed: int) -> None:
        self.probability = faults.drop
        self.announced = faults.loss == "known"
        self.seed = seed
        self._faults = faults
        self._everywhere = (faults.drop, faults.delay_s, faults.jitter_s, faults.duplicate)
        self._edges: dict[tuple[str, str], list[EdgeFaults]] = {}
        for edge in faults.edge:
            self._edges.setdefault((edge.sender, edge.receiver), []).append(edge)

    @property
    def touches_messages(self) -> bool:
        """Whether any message may meet with anything."""
        return any(self._everywhere) or bool(self._faults.edge)

    def drops(self, step: int, round: int, tree: int, sender: str, receiver: str) -> bool:
        """Is the message that `sender` sends to `receiver` in this step and round lost? Of a pair's
        messages the number of their exchange is the round: a call that is made again is another.

        The tree has no say: the halves of a model that cross the same edge on two trees are one
        message as far as an experiment is concerned, and are lost together.
        """
        del tree
        drop, _, _, _ = self._rules(step, sender, receiver)
        return self._uniform("drop", step, round, sender, receiver) < drop

    def fate(self, step: int, round: int, tree: int, sender: str, receiver: str) -> Fate:
        """What becomes of that message; a copy is late by delay_s + uniform(0, jitter_s)."""
        if self.drops(step, round, tree, sender, receiver):
            return Fate(())
        _, delay_s, jitter_s, duplicate = self._rules(step, sender, receiver)
        place = (step, round, sender, receiver)
        copies = 1 + (self._uniform("twice", *place) < duplicate)
        late = (jitter_s * self._uniform("delay", *place, k) for k in range(copies))
        return Fate(tuple(delay_s + jitter for jitter in late))

    def slow_down(self, peer: str) -> float:
        """By which factor its local steps take longer."""
        return self._faults.slow.get(peer, 1.0)

    def parted(self, now_s: float, a: str, b: str) -> bool:
        """Whether a partition is between two peers, `now_s` seconds after the run began."""
        return any(
            p.start_s <= now_s < p.end_s and (a in p.group) != (b in p.group)
            for p in self._faults.partition
        )

    def crashes(self, peer: str) -> list[CrashFault]:
        """Those of one peer, in the order given."""
        return [crash for crash in self._faults.crash if crash.peer == peer]

    def _rules(self, step: int, sender: str, receiver: str) -> tuple[float, float, float, float]:
        """drop, delay_s, jitter_s and duplicate on this edge in this step."""
        if (sender, receiver) not in self._edges:
            return self._everywhere
        values = dict(zip(_PER_EDGE, self._everywhere, strict=True))
        for edge in self._edges[sender, receiver]:
            if edge.steps is None or step in edge.steps:
                own = {name: getattr(edge, name) for name in _PER_EDGE}
                values |= {name: value for name, value in own.items() if value is not None}
        drop, delay_s, jitter_s, duplicate = values.values()
        return drop, delay_s, jitter_s, duplicate

    def _uniform(self, purpose: str, *place: int | str) -> float:
        """A number in [0, 1) that depends on the purpose, the seed and the place alone."""
        text = repr((self.seed, *place)).encode()
        person = f"relayswarm {purpose}".encode()
        draw = blake2b(text, digest_size=8, person=person).digest()
        return math.ldexp(int.from_bytes(draw, "little") >> (64 - _MANTISSA_BITS), -_MANTISSA_BITS)


_PER_EDGE = ("drop", "delay_s", "jitter_s", "duplicate")


def check_peers(config: RunConfig, members: Collection[str]) -> None:
    """Raise ConfigError if a fault or a weight is of a peer that the run does not have."""
    weighted = config.algorithm.neighbour_weights or ()
    named = [("algorithm.neighbour_weights", peer) for peer in weighted]
    named += [("data.weights", peer) for peer in config.data.weights]
    named += [("data.forward", peer) for peer in config.data.forward]
    for field, peer in chain(_peers_named(config.faults), named):
        if peer not in members:
            known = _shortened(sorted(members))
            raise ConfigError(field, peer, "no peer of this run", f"its peers are {known}")


def check_possible(faults: FaultsConfig) -> None:
    """Raise ConfigError for faults that only the simulator can inject."""
    for name in ("crash", "partition", "reorder"):
        if getattr(faults, name):
            raise ConfigError(
                f"faults.{name}",
                getattr(faults, name) if name == "reorder" else "set",
                "processes cannot be told to have this fault",
                "use `relayswarm simulate`, or kill processes by hand",
            )


def _peers_named(faults: FaultsConfig) -> Iterator[tuple[str, str]]:
    yield from (("faults.slow", peer) for peer in faults.slow)
    for edge in faults.edge:
        yield "faults.edge.sender", edge.sender
        yield "faults.edge.receiver", edge.receiver
    yield from (("faults.partition.group", peer) for p in faults.partition for peer in p.group)
    yield from (("faults.crash.peer", crash.peer) for crash in faults.crash)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
