"""The coordinator's part in a simulated swarm."""

from __future__ import annotations

from coordinator.rules import LEAST_ROOM
from peer.simulator.coordination import Coordination
from peer.simulator.world import World
from peer.views import peer_ids
from relayswarm.config import RunConfig


def test_there_is_room_for_all_peers_that_a_run_needs() -> None:
    peers = peer_ids(LEAST_ROOM + 10)
    coordination = Coordination(RunConfig(peers=len(peers)), World(), 1, lambda _: None)
    for peer in peers:
        coordination.join(peer)
    assert coordination.membership.present == tuple(peers)
