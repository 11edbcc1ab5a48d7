"""What a member does when its coordinator lets it go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from peer.lease import Lease
from peer.metrics import PeerMetrics
from peer.parts import PeerOptions
from peer.transport.coordinator_client import NoAnswerError
from relayswarm.errors import JoinError


@pytest.mark.parametrize(
    ("error", "ends"), [(NoAnswerError("away"), False), (JoinError("refused"), True)]
)
def test_only_a_refusal_ends_a_member_that_joins_again(error: JoinError, ends: bool) -> None:
    def join(*_: object) -> None:
        raise error

    failed: list[Exception] = []
    client: Any = SimpleNamespace(join=join)
    daemon = SimpleNamespace(peer="peer-0", steps_done=3, metrics=PeerMetrics(), fail=failed.append)
    parts: Any = SimpleNamespace(options=PeerOptions(coordinator="127.0.0.1:1"), daemon=daemon)
    Lease(client, 1, parts)._rejoin()
    assert failed == ([error] if ends else [])
