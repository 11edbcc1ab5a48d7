"""How a peer hears of signals when its training is over, and what it says when an error ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from peer import service
from peer.parts import PeerOptions
from peer.service import Peer
from relayswarm.errors import DataError, OutOfMemoryError, RelayswarmError

PATIENCE_S = 20.0


@pytest.fixture
def done() -> Iterator[Any]:
    """Its core loop has ended: that hears of nothing any more."""
    peer = Peer(PeerOptions(coordinator="127.0.0.1:1"))
    peer.daemon = Mock()
    yield peer
    peer.client.close()


def test_a_signal_between_the_last_step_and_lingering_is_not_lost(done: Peer) -> None:
    done._on_signal(signal.SIGTERM, None)
    thread = threading.Thread(target=done._stay, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_peer_that_has_just_joined_when_it_is_stopped_ends(
    done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line is closed then: it would wait for ever for a view."""
    daemon, done.daemon = done.daemon, None
    monkeypatch.setattr(done.client, "close", lambda: setattr(done, "daemon", daemon))
    done.stop()
    assert daemon.stop.called
    monkeypatch.undo()


def test_a_signal_ends_lingering_and_the_next_one_nothing_more(done: Peer) -> None:
    assert done._until_told(lambda: done._on_signal(signal.SIGTERM, None)) is None
    done._on_signal(signal.SIGTERM, None)  # the goodbye is under way


@pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("step 3"), DataError("data file", "a.jpg", "no image", "replace it")],
    ids=["memory", "data"],
)
def test_whom_an_error_ends_says_goodbye_and_keeps_no_half_step(
    done: Any, monkeypatch: pytest.MonkeyPatch, error: RelayswarmError
) -> None:
    """Else all others would wait for its lease to run out."""
    lease, parts = Mock(), Mock()
    monkeypatch.setattr(service, "Lease", lambda *_: lease)
    monkeypatch.setattr(service, "require_way_back", lambda *_: None)
    parts.daemon.run.side_effect = error
    with pytest.raises(RelayswarmError) as caught:
        done._be_member(parts)
    assert caught.value is error
    assert lease.end.called
    lease.leave.assert_called_once_with(finished=False)
    parts.checkpoints.save.assert_not_called()
