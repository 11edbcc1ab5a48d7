"""The views that are still to come, and who has gone on to them: rule R8, as far as waiting goes.

    R8  Views take effect one after the other, each at its step. Who has gone on to a later epoch
        than ours is not waited for if we know of one too: what it sends now is of use there only.
        It says so to whoever may wait for it: by its refusal of what comes, or a farewell for what
        had come, or has been left behind unseen.

What else becomes of a peer in a new epoch is in `synchronous`.
"""

from __future__ import annotations

from collections.abc import Iterator

from peer.algorithms.core import PeerId, View


class Succession:
    """Views later than the one in force, each with a later effective step."""

    def __init__(self) -> None:
        self._views: list[View] = []
        self._gone_on: set[PeerId] = set()  # to a later epoch than ours

    def __bool__(self) -> bool:
        return bool(self._views)

    def __iter__(self) -> Iterator[View]:
        return iter(self._views)

    @property
    def last(self) -> View | None:
        """The latest, if there is any."""
        return self._views[-1] if self._views else None

    def add(self, view: View) -> None:
        """It is newer than all others, and takes the place of those that would come after it."""
        sooner = [other for other in self._views if other.effective_step < view.effective_step]
        self._views = [*sooner, view]

    def take(self, step: int) -> View | None:
        """The latest one whose time has come by `step`: it is in force from now on."""
        due = [view for view in self._views if view.effective_step <= step]
        if not due:
            return None
        self._views = self._views[len(due) :]
        self._gone_on = set()
        return due[-1]

    def has_gone_on(self, peer: PeerId) -> None:
        """So that peer has said."""
        self._gone_on.add(peer)

    def has(self, peer: PeerId, present: View) -> bool:
        """Whether the last topology known still has that peer, in its life of the `present` one,
        and it has not gone on without us. (If we know of no later one, ours is on its way.)"""
        if not self._views:
            return True
        following = self._views[-1].members.get(peer)
        return following == present.members.get(peer) and peer not in self._gone_on
