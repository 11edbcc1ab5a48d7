"""What has come in over one edge, and whether to wait for more: rules R1 to R3, R5 and R6.

A slot only ever holds models from behind its edge, so however late a message is used, each peer
appears at most once in any sum. That is why late messages may be used at all, and why counts do
not depend on the steps that messages are labelled with.

    R1  The labels used over an edge rise strictly; a message is used at most once.
    R2  Wait for label == t. When waiting ends, use the newest unused label <= t, else nothing.
    R3  A label > t is kept, one per edge, the newest wins; a label <= the last used is a duplicate.
    R5  A broken stream or an announced loss is a known loss for its step: don't wait for it.
    R6  After three time-outs in a row, nothing having come between them, or once the transport
        says unreachable, the edge is not waited for until a message with label >= t arrives from
        it. (If no edge is left, see `Synchronous`: word of the transport is then not enough.)

Ceasing to wait after a single miss would be harmful: at 10 % silent loss it turns most waits into
misses on both sides of an edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from peer.algorithms.core import DropReason, Head, PeerId, Received, Verdict

Edge: TypeAlias = tuple[int, PeerId]
"""(tree, neighbour); the tree is 0 for methods without trees."""

Label: TypeAlias = tuple[int, int]
"""(step, round): what messages over an edge are ordered by."""

Inbox: TypeAlias = Mapping[Edge, Received | None]
"""What is there to use; None: nothing came over that edge."""

TIME_OUTS_BEFORE_SILENT = 3

DROP_REASONS = {
    Verdict.DUPLICATE: DropReason.STALE,
    Verdict.STALE_STEP: DropReason.STALE,
    Verdict.EPOCH_BEHIND: DropReason.EPOCH,
    Verdict.EPOCH_AHEAD: DropReason.EPOCH,
    Verdict.OLD_INCARNATION: DropReason.EPOCH,
    Verdict.BAD_COUNT: DropReason.COUNT,
}
"""Why a message that was admitted at its header is of no use once it is in."""


def label_of(head: Head) -> Label:
    return (head.step, head.round)


class Slot:
    """The receiving end of one edge in one tree, for one epoch.

    `start` is the label before the first that will be sent in this epoch.
    """

    def __init__(self, start: Label) -> None:
        self.used: Label = start  # last label used (R1)
        self.seen: Label = start  # largest label received or known to be lost
        # Unused: at most one <= t and one > t. Replaced, never changed: `judge` runs in any thread.
        self.held: dict[Label, Received] = {}
        self.time_outs = 0
        self.silent = False  # not waited for (R6)

    def judge(self, label: Label, now: Label) -> Verdict:
        """What a message with `label` is worth while one with `now` is or will be awaited."""
        held, used = self.held, self.used
        if label == used or label in held:
            return Verdict.DUPLICATE
        if not held:
            return Verdict.STALE_STEP if label < used else Verdict.ACCEPTED
        rivals = [other for other in held if (other > now) == (label > now)]
        return Verdict.STALE_STEP if label < max(rivals, default=used) else Verdict.ACCEPTED

    def offer(self, received: Received, now: Label) -> list[tuple[Head, DropReason]]:
        """Keep a message if it is of use; returns what is dropped for it, with reasons."""
        label = label_of(received.head)
        if self.judge(label, now) is not Verdict.ACCEPTED:
            return [(received.head, DropReason.STALE)]
        self.heard(label, now)
        self.held = {**self.held, label: received}
        return self._prune(now)

    def heard(self, label: Label, now: Label) -> None:
        """The sender has got to `label`: it will send nothing older any more (R7 at its end).

        Late as it may be, it lives: time-outs are in a row only if nothing comes between them.
        Else peers behind a neighbour that waits for a dead one would soon cease to wait for it.
        """
        self.seen = max(self.seen, label)
        self.time_outs = 0
        if label >= now:
            self.silent = False

    def lost(self, label: Label) -> None:
        """That message will not come (R5). An announcement is no payload: R6 stays in force."""
        self.seen = max(self.seen, label)

    def awaited(self, label: Label, *, cut_off: bool = False) -> bool:
        """Whether a message with `label` may still come and is worth waiting for.

        `cut_off`: no edge of this peer is any better; then only time-outs end the waiting.
        """
        given_up = self.time_outs >= TIME_OUTS_BEFORE_SILENT if cut_off else self.silent
        return not given_up and self.seen < label

    def take(self, label: Label) -> Received | None:
        """Use the newest unused message up to `label`, if there is one (R2)."""
        newest = self._newest(label)
        if newest is None:
            return None
        self.used = newest
        taken = self.held[newest]
        self.held = {other: held for other, held in self.held.items() if other > newest}
        return taken

    def time_out(self) -> None:
        self.time_outs += 1
        if self.time_outs >= TIME_OUTS_BEFORE_SILENT:
            self.silent = True

    def ahead(self, now: Label) -> Label | None:
        """The largest label held beyond `now`: where the sender already is (R4)."""
        later = [label for label in self.held if label > now] if self.held else ()
        return max(later) if later else None

    def _newest(self, label: Label) -> Label | None:
        earlier = [held for held in self.held if held <= label] if self.held else ()
        return max(earlier) if earlier else None

    def _prune(self, now: Label) -> list[tuple[Head, DropReason]]:
        if len(self.held) == 1:
            return []
        keep = {self._newest(now), self.ahead(now)}
        dropped = [held.head for label, held in self.held.items() if label not in keep]
        self.held = {label: held for label, held in self.held.items() if label in keep}
        return [(head, DropReason.SUPERSEDED) for head in dropped]
