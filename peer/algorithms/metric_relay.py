"""The swarm's mean of what its peers measure now: RelaySum with scalars (Vogels et al. 2021, F).

Algorithm 5 as printed averages over the whole life of a run. For metrics of now the sums of one
evaluation travel along the tree, each with that evaluation's step s:

    m_{i->j}(s) = own_i(s) + sum over k in N_i without j of m_{k->i}(s)
    known_i(s)  = own_i(s) + sum over k in N_i of m_{k->i}(s)

own_i(s) holds for each metric w v, w and 1: its value v times what it weighs (samples, say), the
weight, and one peer; the mean is the sum of w v over that of w. Only peers behind an edge are in
what comes over it, so each is in a sum once. While nothing is lost a peer sends each neighbour one
message for each evaluation, and knows the mean of all as soon as word has crossed the tree.

Training waits for none of this. A sum goes out when whatever it still lacks is known not to come
(announced losses, peers that cannot be reached, a peer that skipped the evaluation), or else after
as many more evaluations as the tree's diameter. What comes after all makes the sum larger, and it
is told again: of two messages of one evaluation the one with more peers holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from peer.algorithms.core import Coef, Drop, DropReason, Head, Kind, PeerId, Verdict, View

KEPT = 64
"""Evaluations whose sums are kept; a peer that is further behind its neighbours misses some."""

MAX_METRICS = 32
"""In one message; of a task with more, the first travel."""

MAX_NAME = 64
"""Characters of a metric's name; one with more does not travel."""

LARGEST = 1e300
"""Sums beyond this are refused: a few of them would overflow."""

Measurement = tuple[Coef, Coef]
"""(value, weight)"""


@dataclass(frozen=True, slots=True)
class Sum:
    """One metric over some peers: sum of weight x value, sum of weights, and how many they are."""

    total: Coef
    weight: Coef
    peers: int

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.total + other.total, self.weight + other.weight, self.peers + other.peers)

    @property
    def mean(self) -> Coef | None:
        """The weighted mean; None if nothing has any weight."""
        return self.total / self.weight if self.weight else None

    def is_sound(self, peers: int) -> bool:
        """Whether so many peers, or some of them, can have measured this."""
        bounded = self.weight <= LARGEST and -LARGEST <= self.total <= LARGEST
        weighed = self.weight > 0 or (self.weight == 0 and self.total == 0)
        return 0 <= self.peers <= peers and bounded and weighed


Sums: TypeAlias = Mapping[str, Sum]
"""By name of the metric."""


@dataclass(frozen=True, slots=True)
class SwarmMean:
    """What a peer knows of the swarm's evaluation at `step`: the sums over `peers` of its peers."""

    step: int
    peers: int
    sums: Sums

    def mean(self, metric: str) -> Coef | None:
        """The weighted mean of a metric; None if nobody measured it, or with weight zero alone."""
        return self.sums[metric].mean if metric in self.sums else None


@dataclass(frozen=True, slots=True)
class Tell:
    """Send these sums to a neighbour; `head.metrics` are their names, in order. If there are none,
    say so as if they were lost: then they are not waited for."""

    to: PeerId
    head: Head
    sums: Sums


Effect: TypeAlias = Tell | Drop


@dataclass(slots=True)
class _Evaluation:
    """What is known of one evaluation. `own` is empty of a peer that has measured nothing, and None
    as long as it may still measure; `told` are the peers in what a neighbour was told last."""

    own: Sums | None = None
    heard: dict[PeerId, SwarmMean] = field(default_factory=dict)
    lost: set[PeerId] = field(default_factory=set)
    told: dict[PeerId, int] = field(default_factory=dict)

    @property
    def peers(self) -> int:
        return bool(self.own) + sum(mean.peers for mean in self.heard.values())

    def peers_from(self, neighbour: PeerId) -> int:
        return self.heard[neighbour].peers if neighbour in self.heard else 0

    def sums(self, order: Mapping[PeerId, int], but: PeerId | None = None) -> Sums:
        """Over all that is known, what came from one neighbour left out. Always in visiting order,
        so that no bit of a sum depends on who was first."""
        parts = [self.own] if self.own is not None else []
        parts += [self.heard[k].sums for k in order if k in self.heard and k != but]
        added: dict[str, Sum] = {}
        for part in parts:
            for name, more in part.items():
                added[name] = added[name] + more if name in added else more
        return added


class MetricRelay:
    """One peer's part. `is_due` says at which steps there are evaluations.

    `known` is the newest evaluation of which all is in that will come, or was waited for; it stays
    through new epochs until there is a newer one, or more is known of it.
    """

    def __init__(self, is_due: Callable[[int], bool]) -> None:
        self.known: SwarmMean | None = None
        self._is_due = is_due
        self._view: View | None = None
        self._measured: dict[int, Sums] = {}  # the newest of this peer's own
        self._names: frozenset[str] = frozenset()  # of this peer's metrics; empty: not known
        self._open: dict[int, _Evaluation] = {}
        self._forgotten = -1
        self._gone: set[PeerId] = set()
        self._closed = False

    # --- what happens --------------------------------------------------------------------------

    def viewed(self, view: View) -> list[Effect]:
        """A new epoch: begin anew on its tree, with what this peer measured last."""
        if self._view and view.epoch.age <= self._view.epoch.age:
            return []
        lives = self._view.members if self._view else {}
        self._gone = {k for k in self._gone if view.members.get(k) == lives.get(k)}
        self._view = view
        self._open, self._forgotten = {}, -1
        if not self._measured:
            return []
        step = max(self._measured)
        self._at(step).own = self._measured[step]
        return self._advance(step)

    def measured(
        self, step: int, values: Mapping[str, Measurement], withheld: Iterable[str] = ()
    ) -> list[Effect]:
        """This peer has evaluated its model; older evaluations that it has not made are skipped.
        What is withheld is passed on for others, and nothing of this peer's added to it."""
        own = {name: Sum(w * v, w, 1) for name, (v, w) in values.items()}
        own |= {name: Sum(0, 0, 0) for name in withheld}
        dropped = self._learn_names(frozenset(own))
        newest = sorted({*self._measured, step})[-KEPT:]
        self._measured = {s: own if s == step else self._measured[s] for s in newest}
        if self._view is None:
            return dropped
        self._at(step).own = own
        return [*dropped, *self._advance_all()]

    def admit(self, head: Head) -> Verdict:
        """Is the message of use? Counts are bounded as for models."""
        view = self._view
        if view is None or head.epoch.age > view.epoch.age:
            return Verdict.EPOCH_AHEAD
        if head.epoch != view.epoch:
            return Verdict.EPOCH_BEHIND
        if head.sender not in self._behind:
            return Verdict.NOT_A_NEIGHBOUR
        if head.incarnation != view.members[head.sender]:
            return Verdict.OLD_INCARNATION
        if not self._is_due(head.step):
            return Verdict.FOREIGN_RUN
        if head.step <= self._forgotten:
            return Verdict.STALE_STEP
        return Verdict.ACCEPTED if head.lost else self._judge(head)

    def _judge(self, head: Head) -> Verdict:
        if not 1 <= head.count <= self._behind[head.sender]:
            return Verdict.BAD_COUNT
        if not self._knows(head.metrics):
            return Verdict.BAD_METRIC
        held = self._open[head.step].heard.get(head.sender) if head.step in self._open else None
        if held is None or head.count > held.peers:
            return Verdict.ACCEPTED
        return Verdict.DUPLICATE if head.count == held.peers else Verdict.STALE_STEP

    def received(self, head: Head, sums: Sums) -> tuple[Verdict, list[Effect]]:
        """The sums of peers behind an edge, or (`head.lost`) the word that they are lost."""
        verdict = self.admit(head)
        if verdict is Verdict.ACCEPTED and not head.lost:
            sound = all(one.is_sound(int(head.count)) for one in sums.values())
            verdict = Verdict.ACCEPTED if sound else Verdict.BAD_METRIC
        if verdict is not Verdict.ACCEPTED:
            return verdict, []
        self._gone.discard(head.sender)
        evaluation = self._at(head.step)
        if head.lost:
            evaluation.lost.add(head.sender)
        else:
            evaluation.heard[head.sender] = SwarmMean(head.step, int(head.count), sums)
        return verdict, self._advance(head.step)

    def gone(self, peer: PeerId) -> list[Effect]:
        """A peer cannot be reached: nothing is awaited from it until it is heard of again."""
        self._gone.add(peer)
        return self._advance_all()

    def close(self) -> list[Effect]:
        """Wait for nothing any more."""
        self._closed = True
        return self._advance_all()

    def restart(self) -> None:
        """The swarm has let this peer go: what it measured before it comes back is no news."""
        self._view, self._measured = None, {}

    def is_settled(self, step: int) -> bool:
        """Whether all of an evaluation is in that will come."""
        return step in self._open and not self._awaited(step)

    # --- what follows --------------------------------------------------------------------------

    def _advance_all(self) -> list[Effect]:
        return [effect for step in sorted(self._open) for effect in self._advance(step)]

    def _advance(self, step: int) -> list[Effect]:
        """Tell of an evaluation whoever can be told something new."""
        evaluation = self._open.get(step)  # None: forgotten as soon as it was heard of
        awaited = self._awaited(step)
        if evaluation is None or len(awaited) > 1:
            return []
        if not awaited:
            self._learn(step, evaluation)
        peers, told = evaluation.peers, evaluation.told
        to = [j for j in self._behind if awaited <= {j}]
        news = [j for j in to if peers - evaluation.peers_from(j) > told.get(j, -1)]
        return [self._tell(step, evaluation, j) for j in news]

    def _tell(self, step: int, evaluation: _Evaluation, to: PeerId) -> Tell:
        assert self._view is not None
        view, peers = self._view, evaluation.peers - evaluation.peers_from(to)
        sums = evaluation.sums(self._behind, but=to)
        evaluation.told[to] = peers
        head = Head(
            sender=view.me,
            incarnation=view.members[view.me],
            epoch=view.epoch,
            step=step,
            kind=Kind.METRIC,
            count=peers,
            metrics=tuple(sums),
        )
        return Tell(to, head, sums)

    def _learn(self, step: int, evaluation: _Evaluation) -> None:
        peers = evaluation.peers
        before = (self.known.step, self.known.peers) if self.known else (-1, 0)
        if self._measured and peers and (step, peers) > before:
            self.known = SwarmMean(step, peers, evaluation.sums(self._behind))

    def _awaited(self, step: int) -> set[PeerId]:
        """Whose measurements of an evaluation may still come: neighbours', or this peer's own."""
        later = sum(measured > step for measured in self._measured)
        evaluation = self._open.get(step, _Evaluation())
        awaited = set() if self._has_waited(later) else set(self._behind) - self._gone
        awaited -= evaluation.heard.keys() | evaluation.lost
        if self._view and evaluation.own is None and not later and not self._closed:
            awaited.add(self._view.me)
        return awaited

    def _has_waited(self, evaluations: int) -> bool:
        """Whether so many later evaluations are long enough."""
        return self._closed or (self._view is not None and evaluations >= self._view.diameter)

    # --- small things --------------------------------------------------------------------------

    @property
    def _behind(self) -> Mapping[PeerId, int]:
        """The peers behind each edge of the (first) tree, by neighbour in visiting order."""
        return self._view.trees[0] if self._view and self._view.trees else {}

    def _at(self, step: int) -> _Evaluation:
        """What is known of an evaluation. The oldest are forgotten for newer ones."""
        evaluation = self._open.setdefault(step, _Evaluation())
        while len(self._open) > KEPT:
            oldest = min(self._open)
            del self._open[oldest]
            self._forgotten = oldest
        return evaluation

    def _knows(self, names: Iterable[str]) -> bool:
        """Before its own first evaluation a peer does not know which metrics there are, and one
        without data never does."""
        return not self._names or self._names.issuperset(names)

    def _learn_names(self, names: frozenset[str]) -> list[Effect]:
        """What was taken on trust, and has names that do not exist, is dropped."""
        self._names |= names
        dropped: list[Effect] = []
        for step, evaluation in self._open.items():
            for peer, mean in list(evaluation.heard.items()):
                if not self._knows(mean.sums):
                    del evaluation.heard[peer]
                    dropped.append(Drop(self._bad(step, peer, mean), DropReason.UNEXPECTED))
        return dropped

    def _bad(self, step: int, peer: PeerId, mean: SwarmMean) -> Head:
        assert self._view is not None
        lives, epoch = self._view.members, self._view.epoch
        return Head(peer, lives[peer], epoch, step, Kind.METRIC, count=mean.peers)
