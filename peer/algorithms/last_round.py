"""How far a peer is in the last round, and what a message of it is worth to it there.

What belongs here: the judging of messages, and what it judges by. What is sent, and when, is in
`common_model`.
"""

from __future__ import annotations

from enum import IntEnum

from peer.algorithms.allreduce import parent_of
from peer.algorithms.core import Head, Lin, Mean, PeerId, Received, Verdict, View
from peer.algorithms.slots import Edge


class Last(IntEnum):
    """What a message of this round is, in the place of the number of an exchange. HAVE and DONE
    have no payload."""

    SUM = 1
    MEAN = 2
    HAVE = 3
    DONE = 4


class Standing:
    """What one peer has of the mean of all models. All but `held` and `common` is of one epoch.

    `judge` runs in any thread. So whatever is about to be known is set last: a message that is to
    be taken may be judged of use too soon, but never known, upon which it would not come again.
    """

    def __init__(self) -> None:
        self.held: Mean | None = None  # what the live model is, once it is a mean
        self.common: Mean | None = None  # the same, once all have it
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Keep the mean, if there is one."""
        self.sums: dict[Edge, Received] = {}  # of children, on the present trees
        self.summed: set[int] = set()  # trees on which this peer's sum is on its way up
        self.coming: Mean | None = None  # of which this peer has
        self.halves: dict[int, Lin] = {}  # those of these trees
        self.have: set[PeerId] = set()  # children with all behind them that have `held`
        self.told = False  # that this peer has it, and all behind it

    def expect(self, mean: Mean) -> None:
        """A mean begins to come in, in the place of an older one."""
        self.halves = {}
        self.coming = mean

    def hold(self, mean: Mean) -> None:
        """All of a mean is in, and the live model is that now."""
        self.have, self.told = set(), False
        self.held = mean
        self.sums, self.coming, self.halves = {}, None, {}

    def judge(self, view: View, head: Head) -> Verdict:
        """Of a message of this round, in the topology that this peer knows."""
        if self.common and head.mean == self.common:
            return Verdict.DUPLICATE if head.exchange == Last.DONE else Verdict.STALE_STEP
        if head.exchange == Last.DONE:
            return self._judge_word(head)
        if head.epoch.age > view.epoch.age:
            return Verdict.EPOCH_AHEAD
        return self._judge_here(view, head) if head.epoch == view.epoch else Verdict.EPOCH_BEHIND

    def _judge_here(self, view: View, head: Head) -> Verdict:
        """It is of the present epoch."""
        if head.tree >= len(view.trees) or head.sender not in view.trees[head.tree]:
            return Verdict.NOT_A_NEIGHBOUR
        if head.incarnation != view.members[head.sender]:
            return Verdict.OLD_INCARNATION
        is_parent = head.sender == parent_of(view, head.tree)
        if head.exchange == Last.MEAN:
            return self._judge_mean(view, head, is_parent=is_parent)
        if is_parent:
            return Verdict.NOT_A_NEIGHBOUR  # in that direction
        if head.exchange == Last.HAVE:
            known = head.sender in self.have and head.mean == self.held
            return Verdict.DUPLICATE if known else self._judge_word(head)
        return self._judge_sum(view, head)

    def _judge_sum(self, view: View, head: Head) -> Verdict:
        if head.lost:
            return Verdict.BAD_LENGTH  # it is to come again, whole
        if head.count != view.trees[head.tree][head.sender] or not view.can_weigh(head):
            return Verdict.BAD_COUNT
        known = self.held or (head.tree, head.sender) in self.sums
        return Verdict.DUPLICATE if known else Verdict.ACCEPTED

    def _judge_mean(self, view: View, head: Head, *, is_parent: bool) -> Verdict:
        if head.lost:
            return Verdict.BAD_LENGTH
        mean, known = head.mean, self.coming or self.held
        if mean is None or (mean.epoch == view.epoch and not is_parent):
            return Verdict.BAD_COUNT
        if head.count != (view.n if mean.epoch == view.epoch else mean.n):
            return Verdict.BAD_COUNT
        if mean == known:
            is_in = self.coming is None or head.tree in self.halves
            return Verdict.DUPLICATE if is_in else Verdict.ACCEPTED
        if self.common or (known and mean.epoch.age < known.epoch.age):
            return Verdict.EPOCH_BEHIND
        return Verdict.ACCEPTED

    def _judge_word(self, head: Head) -> Verdict:
        """Of HAVE and DONE: they are about the mean that this peer has, or it has to get it yet."""
        if head.mean is None or head.mean == self.held:
            return Verdict.ACCEPTED if head.mean else Verdict.BAD_COUNT
        older = self.held is not None and head.mean.epoch.age < self.held.epoch.age
        return Verdict.EPOCH_BEHIND if older else Verdict.EPOCH_AHEAD
