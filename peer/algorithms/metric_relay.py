"""The swarm's mean of what its peers measure now: RelaySum with scalars (Vogels et al. 2021, F).

Algorithm 5 as printed averages over the whole life of a run. For a metric as it is now, each peer
relays once for each evaluation the sums of what it knows, and divides:

    m_{i->j} = (w_i v_i, w_i, 1) + sum over k in N_i without j of m_{k->i}    (the newest of each)
    mean     = sum of w v / sum of w, over the own measurement and the newest of every neighbour

v is the value, w its weight (samples, say), and the third number counts peers. A message is used
again until a newer one comes, for it only holds what is behind its edge: each peer appears once in
a sum, at most as many evaluations old as it is hops away. A sum says the oldest step in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from peer.algorithms.core import Coef, Epoch, PeerId, Verdict, View

Measurement = tuple[Coef, Coef]
"""(value, weight)"""


@dataclass(frozen=True, slots=True)
class Sums:
    """What some peers measured: by metric, the sums of weight x value and of weights."""

    totals: Mapping[str, tuple[Coef, Coef]]
    peers: int
    oldest_step: int

    def mean(self, metric: str) -> Coef | None:
        """The weighted mean; None if nobody measured it, or with weight zero alone."""
        total, weight = self.totals.get(metric, (0, 0))
        return total / weight if weight else None


@dataclass(frozen=True, slots=True)
class MetricMessage:
    """The sums of all that is behind an edge, seen from the receiver."""

    sender: PeerId
    epoch: Epoch
    step: int  # of the sender's evaluation
    sums: Sums


@dataclass
class MetricRelay:
    """One peer's part, for one epoch: a new view needs a new one."""

    view: View
    _newest: dict[PeerId, MetricMessage] = field(default_factory=dict)

    def measured(
        self, step: int, values: Mapping[str, Measurement]
    ) -> tuple[Sums, dict[PeerId, MetricMessage]]:
        """What the swarm's metrics are, this peer's evaluation of `step` included, and what to tell
        each neighbour."""
        own = Sums({name: (w * v, w) for name, (v, w) in values.items()}, 1, step)
        messages = {
            j: MetricMessage(self.view.me, self.view.epoch, step, _add([own, *self._but(j)]))
            for j in self._behind
        }
        return _add([own, *self._but(None)]), messages

    def judge(self, message: MetricMessage) -> Verdict:
        """Is the message of use? Counts are bounded as for models."""
        if message.epoch != self.view.epoch:
            ahead = message.epoch.age > self.view.epoch.age
            return Verdict.EPOCH_AHEAD if ahead else Verdict.EPOCH_BEHIND
        if message.sender not in self._behind:
            return Verdict.NOT_A_NEIGHBOUR
        if not 1 <= message.sums.peers <= self._behind[message.sender]:
            return Verdict.BAD_COUNT
        last = self._newest.get(message.sender)
        return Verdict.STALE_STEP if last and message.step <= last.step else Verdict.ACCEPTED

    def received(self, message: MetricMessage) -> Verdict:
        """Keep a message if it is of use."""
        verdict = self.judge(message)
        if verdict is Verdict.ACCEPTED:
            self._newest[message.sender] = message
        return verdict

    @property
    def _behind(self) -> Mapping[PeerId, int]:
        """The peers behind each edge of the (first) tree."""
        return self.view.trees[0] if self.view.trees else {}

    def _but(self, j: PeerId | None) -> list[Sums]:
        """The newest of every neighbour but j, in visiting order."""
        return [self._newest[k].sums for k in self._behind if k in self._newest and k != j]


def _add(parts: Iterable[Sums]) -> Sums:
    totals: dict[str, tuple[Coef, Coef]] = {}
    peers, oldest = 0, []
    for part in parts:
        peers += part.peers
        oldest.append(part.oldest_step)
        for name, (total, weight) in part.totals.items():
            before = totals.get(name, (0, 0))
            totals[name] = (before[0] + total, before[1] + weight)
    return Sums(totals, peers, min(oldest))
