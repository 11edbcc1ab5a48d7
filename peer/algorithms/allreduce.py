"""Exact averaging in every step: all-reduce over the tree, reduced to the root and broadcast back.

    up      i sends its parent   x_half_i + the sums of its children, once these are in
    root    mean = (x_half + the sums of all children) / n
    down    every peer passes the mean on to its children
    x <- mean                            x_half = x + u (local steps): `local-sgd` if there are many

Peers that do not weigh the same send w_i x_half, and the root divides by W, the sum of all weights.

The root is the centroid of the tree, which every peer finds by itself: a neighbour is the parent if
more than half of all peers are behind its edge (or half, and it is the lower of the two). On two
trees each half of the model has a root of its own.

A round that misses anything cannot complete. Who notices sends, in place of a sum or of the mean,
an announcement without payload, up and down the tree; all who learn of it skip the round, keep
x_half and count it (`skipped`). Who has sent the mean, or got it, does not learn that others did
not: they differ until the next full round.

Nobody waits for ever: a child is waited for so many deadlines as there may be levels below it, the
parent for one more than the whole tree may have. So the one who waits for a dead peer gives up
first, and all others hear of it. A peer that was left behind (R4) joins the round after the last
that it has seen others close. Those below it may by now wait for it no more (R6): it announces that
it skips the round it joins, and as here an announcement is a sign of life, they wait in the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from peer.algorithms.core import (
    LIVE,
    Coef,
    Conserved,
    Effect,
    Head,
    Kind,
    Lin,
    Observe,
    PeerId,
    Received,
    Reg,
    Run,
    Send,
    Set,
    Verdict,
    View,
    peer_order,
)
from peer.algorithms.slots import Edge, Inbox, Label, label_of
from peer.algorithms.synchronous import Phase, Synchronous

X = Reg(LIVE)


@dataclass(frozen=True)
class Options:
    """None."""


class AllReduce(Synchronous):
    """The mean of all models in every step. Messages kept: one per edge."""

    name = "allreduce"
    conserves = Conserved.MEAN
    weighs = True
    kind = Kind.RELAY  # up: a sum of models; down: their mean, with the count of all

    def __init__(self, run: Run, options: Options | None = None) -> None:
        super().__init__(run)
        self.options = options or Options()
        self.skipped = 0  # rounds that did not complete here
        self._counted: Coef = 1
        self._passed: set[tuple[int, bool]] = set()  # (tree, up) that were sent in this step
        self._rejoins = False  # others have gone ahead: this round is skipped

    def period(self) -> int | None:
        return 1

    def expects(self, view: View, label: Label) -> tuple[Edge, ...]:  # noqa: ARG002
        return tuple((tree, j) for tree, around in enumerate(view.trees) for j in around)

    def judge(self, view: View, head: Head) -> Verdict:
        if head.tree >= len(view.trees) or head.sender not in view.trees[head.tree]:
            return Verdict.NOT_A_NEIGHBOUR
        down = head.sender == parent_of(view, head.tree)
        whole = view.n if down else view.trees[head.tree][head.sender]
        fits = head.count == whole and (down or view.can_weigh(head))
        return Verdict.ACCEPTED if head.lost or fits else Verdict.BAD_COUNT

    def patience_s(self, edge: Edge) -> float:
        tree, j = edge
        levels, behind = self._view.diameter, self._view.trees[tree][j]
        is_parent = j == parent_of(self._view, tree)
        return super().patience_s(edge) * (levels + 1 if is_parent else max(min(behind, levels), 1))

    def _jump_ahead(self) -> None:
        """R4, also by announcements. A parent closes the round of its result; a child that is ahead
        may have closed the round of its sum."""
        above, below = [self._step - 1], [self._step]
        for (tree, j), slot in self._slots.items():
            (above if j == parent_of(self._view, tree) else below).append(slot.seen[0])
        self._rejoins = max(below) > self._step
        closed = max(*above, *below) if self._rejoins else max(above)
        self._step = max(self._step, min(closed + 1, self.run.total_steps - 1))

    def _gone(self, peer: PeerId, head: Head | None, now: float) -> list[Effect]:
        if head and self.admit(head) is Verdict.ACCEPTED:
            self._slot((head.tree, head.sender)).heard(label_of(head), self._due)
        return super()._gone(peer, head, now)

    def least_patience_s(self) -> float:
        return min(map(self.patience_s, self._awaited()), default=self.patience.deadline_s)

    def _awaited(self) -> list[Edge]:
        return [] if self._rejoins else super()._awaited()

    # --- up and down -------------------------------------------------------------------------

    def outgoing(self, view: View) -> list[Send]:  # noqa: ARG002
        self._passed = set()
        return []  # a leaf's sums, too, go out with `_pass_on`

    def _advance(self, now: float) -> list[Effect]:
        return self._pass_on() + super()._advance(now)

    def _pass_on(self) -> list[Effect]:
        """Send what has become possible."""
        if self.phase is not Phase.WAITING:
            return []
        ready = [send for tree in range(len(self._view.trees)) for send in self._ready(tree)]
        return [effect for send in ready for effect in self._under_way.send(send)]

    def _ready(self, tree: int) -> Iterator[Send]:
        view, awaited = self._view, self._awaited()
        parent, children = parent_of(view, tree), children_of(view, tree)
        reduced = not any((tree, child) in awaited for child in children)
        if parent and reduced and self._once(tree, up=True):
            yield self._message(parent, tree, _sum(view, tree, self._came))
        known = (tree, parent) not in awaited if parent else reduced
        if known and self._once(tree, up=False):
            mean = _mean(view, tree, self._came)
            for child in children:
                whole = (mean, view.n, view.total_weight) if mean else None
                yield self._message(child, tree, whole)

    def _once(self, tree: int, *, up: bool) -> bool:
        is_new = (tree, up) not in self._passed
        self._passed.add((tree, up))
        return is_new

    def _message(self, to: PeerId, tree: int, content: Content | None) -> Send:
        if content is None:
            return Send(to, replace(self.head(0, tree=tree), lost=True), ())
        lin, count, weight = content
        weight = weight if self._view.weights else 1
        return Send(to, self.head(count, tree=tree, weight=weight), (lin,))

    def _came(self, edge: Edge) -> Received | None:
        return None if self._rejoins else self._slot(edge).held.get(self._due)

    # --- the end of a step -------------------------------------------------------------------

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:
        came: Came = (lambda _: None) if self._rejoins else inbox.__getitem__
        means = [_mean(view, tree, came) for tree in range(len(view.trees))]
        self._counted = view.n if all(means) else 1
        self.skipped += not all(means)
        return [
            effect
            for tree, mean in enumerate(means)
            if mean
            for effect in (_distance(mean, tree), Set(X, mean, tree))
        ]

    def counted(self) -> Coef:
        return self._counted


class LocalSGD(AllReduce):
    """The same, by the name that is usual where a step has many local steps."""

    name = "local-sgd"


Came: TypeAlias = Callable[[Edge], Received | None]
Content: TypeAlias = tuple[Lin, Coef, Coef]
"""Of a message: the vector, how many models are in it, and what they weigh."""


def _sum(view: View, tree: int, came: Came) -> Content | None:
    """The sum of the models from here down; None if one is missing."""
    parts = [came((tree, child)) for child in children_of(view, tree)]
    sums = [received for received in parts if received]
    if len(sums) < len(parts):
        return None
    own = ((view.weight, X),) if view.weight else ()
    lin = Lin((*own, *((1, received.messages[0]) for received in sums)))
    weight = view.weight + sum(view.weight_of(received.head) for received in sums)
    return lin, 1 + sum(received.head.count for received in sums), weight


def _mean(view: View, tree: int, came: Came) -> Lin | None:
    """The mean of all models; None if the round is incomplete, or nothing weighs anything."""
    parent = parent_of(view, tree)
    if parent:
        received = came((tree, parent))
        return Lin(((1, received.messages[0]),)) if received else None
    total = _sum(view, tree, came)
    return Lin(total[0].terms, view.total_weight) if total and view.total_weight else None


def _distance(mean: Lin, tree: int) -> Observe:
    """Consensus distance ||x_half - mean||."""
    negated = tuple((-coef, part) for coef, part in mean.terms)
    return Observe("consensus_distance", Lin(((mean.divisor, X), *negated), mean.divisor), tree)


def parent_of(view: View, tree: int) -> PeerId | None:
    """The neighbour on the way to the root, None at the root."""
    for j, behind in view.trees[tree].items():
        lower = peer_order(j) < peer_order(view.me)
        if 2 * behind > view.n or (2 * behind == view.n and lower):
            return j
    return None


def children_of(view: View, tree: int) -> list[PeerId]:
    return [j for j in view.trees[tree] if j != parent_of(view, tree)]
