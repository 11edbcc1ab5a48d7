"""Messages that must not be missed: each is sent again until it is known to have been taken."""

from __future__ import annotations

from typing import NamedTuple

from peer.algorithms.core import Head, PeerId, Send
from peer.algorithms.last_round import Last

AGAIN_S = 0.25
"""Before a message that was not taken is sent again."""


class Post(NamedTuple):
    """Where a message goes, and what it is: one at a time."""

    tree: int
    to: PeerId
    what: Last


class Posts:
    """Those that are not known to have been taken."""

    def __init__(self) -> None:
        self._sent: dict[Post, Send] = {}
        self._again: dict[Post, float] = {}  # when to send those again

    def __len__(self) -> int:
        return len(self._sent)

    def __getitem__(self, post: Post) -> Send:
        """The message that was sent last."""
        return self._sent[post]

    def add(self, post: Post, send: Send) -> None:
        """It is on its way, in the place of an earlier one."""
        self._sent[post] = send
        self._again.pop(post, None)

    def is_awaited(self, post: Post, head: Head) -> bool:
        """Whether an answer to that message is one to the last that was sent."""
        return post in self._sent and self._sent[post].head == head

    def was_not_taken(self, post: Post, now: float) -> None:
        self._again[post] = now + AGAIN_S

    def taken(self, post: Post) -> None:
        """It need not be sent again."""
        self._sent.pop(post, None)
        self._again.pop(post, None)

    def drop(self, what: Last) -> None:
        """None of these is of any use any more."""
        for post in [post for post in self._sent if post.what is what]:
            self.taken(post)

    def due(self, now: float) -> list[Post]:
        """Those to send again now."""
        return [post for post, at in self._again.items() if at <= now]

    def next_deadline(self) -> float | None:
        """When the first is due."""
        return min(self._again.values(), default=None)
