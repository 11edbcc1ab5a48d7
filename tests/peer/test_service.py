"""What a member does when its coordinator lets it go and does not answer, or refuses it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from peer.parts import PeerOptions
from peer.service import Peer
from peer.transport.coordinator_client import NoAnswerError
from relayswarm.errors import JoinError


@pytest.mark.parametrize(
    ("error", "ends"), [(NoAnswerError("away"), False), (JoinError("refused"), True)]
)
def test_only_a_refusal_ends_a_member_that_joins_again(
    monkeypatch: pytest.MonkeyPatch, error: JoinError, ends: bool
) -> None:
    peer = Peer(PeerOptions(coordinator="127.0.0.1:1"))

    def join(*_: object) -> None:
        raise error

    monkeypatch.setattr(peer.client, "join", join)
    failed: list[Exception] = []
    parts: Any = SimpleNamespace(daemon=SimpleNamespace(peer="peer-0", fail=failed.append))
    peer._rejoin(parts)
    peer.client.close()
    assert failed == ([error] if ends else [])
