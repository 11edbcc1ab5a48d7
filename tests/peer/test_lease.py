"""What a member does when its coordinator lets it go, and which view it ends up with."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from peer import views
from peer.algorithms.core import Epoch, View
from peer.lease import Lease
from peer.metrics import PeerMetrics
from peer.parts import PeerOptions
from peer.transport.coordinator_client import NoAnswerError
from relayswarm import config as run_config
from relayswarm.errors import ConfigError, JoinError


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


def test_a_member_that_cannot_renew_its_lease_ends() -> None:
    """It would train on, and nobody would send it a model any more. What a coordinator of a newer
    release says of the run may be what this one cannot read."""
    member = Member()
    error = ConfigError("future.key", 1, "unknown key", "known keys: peers")
    member.client.renew.return_value = None
    member.client.join.side_effect = error
    member.daemon.metrics, member.daemon.news = PeerMetrics(), threading.Event()
    member.daemon.news.set()
    member.lease._run()
    member.daemon.fail.assert_called_once_with(error)


class Member:
    """A peer that has been seated, and what its daemon was handed."""

    def __init__(self) -> None:
        self.daemon = Mock(peer="peer-0", healing=None, steps_done=0)
        self.daemon.algorithm.step = 0
        self.client = Mock()
        self.client.join.return_value = Mock(peer_id="peer-0", donors=())
        parts = Mock(
            daemon=self.daemon,
            options=PeerOptions(coordinator="127.0.0.1:1"),
            trainer=SimpleNamespace(config=run_config.parse("peers = 2"), fingerprint=1),
        )
        self.lease = Lease(self.client, 1, parts)
        self.lease._seat()

    def on_view(self, view: View) -> None:
        """The coordinator tells it."""
        self.client.watch.call_args.kwargs["on_view"](view, {})

    def handed(self) -> list[int]:
        """The numbers of the epochs, in order."""
        return [call.args[0].epoch.number for call in self.daemon.viewed.call_args_list]


def view(number: int) -> View:
    return View(Epoch(1, number), 0, "peer-0", {"peer-0": 1}, trees=())


@pytest.mark.parametrize("step", [0, 50], ids=["at its step", "starting over"])
def test_a_tree_that_is_taken_up_late_does_not_take_the_place_of_a_newer_view(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The coordinator is back just when the neighbours have committed a tree."""
    member, begun = Member(), Future[None]()
    monkeypatch.setattr(views, "committed_view", lambda *_: view(1))
    member.daemon.start_over.return_value = begun
    member.daemon.announce = lambda *_, **__: member.on_view(view(2))
    member.lease._adopt(Mock(members=(), tree=(), root="peer-0", n=1, step=step))
    begun.set_result(None)
    assert member.handed() == [2, 2], "a fresh algorithm needs it, too"
    member.on_view(view(1))
    assert member.handed() == [2, 2]


def test_who_has_left_while_it_joined_again_leaves_again() -> None:
    """Else the others would wait for it until its new lease is over."""
    member = Member()
    member.lease._rejoin()
    member.client.leave.assert_not_called()
    member.lease.end()
    member.lease._rejoin()
    member.client.leave.assert_called_once_with("peer-0", 1)
