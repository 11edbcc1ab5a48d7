"""What is under way to whom: rule R7.

R7  At most two messages are under way per (neighbour, tree); a newer one cancels the older.
    (To send t+2 a peer needs the neighbour's t+1, for which the neighbour needed this peer's
    t: the one that is cancelled has arrived, or is of no use. With a bound of one, a message
    that is merely slow would be lost. With overlap the bound is three, for there the first
    message of an epoch is sent without waiting for any.)
"""

from __future__ import annotations

from collections.abc import Container

from peer.algorithms.core import Cancel, Effect, Head, PeerId, Send

MOST_UNDER_WAY = 2  # without overlap


class UnderWay:
    """The messages that were sent and not answered yet, oldest first for each edge."""

    def __init__(self, lag: int = 0) -> None:
        self.most = MOST_UNDER_WAY + lag
        self._heads: dict[tuple[PeerId, int], list[Head]] = {}  # by neighbour and tree

    def send(self, send: Send) -> list[Effect]:
        """The effects that bring a message under way."""
        heads = self._heads.setdefault((send.to, send.head.tree), [])
        cancelled = [Cancel(send.to, heads.pop(0))] if len(heads) == self.most else []
        heads.append(send.head)
        return [*cancelled, send]

    def done(self, to: PeerId, head: Head) -> None:
        """That message was answered or given up."""
        heads = self._heads.get((to, head.tree), [])
        if head in heads:
            heads.remove(head)

    def keep(self, members: Container[PeerId]) -> list[Effect]:
        """Cancel what goes to peers that are no longer there."""
        left = [edge for edge in self._heads if edge[0] not in members]
        return [Cancel(edge[0], head) for edge in left for head in self._heads.pop(edge)]
