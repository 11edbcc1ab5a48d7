"""Whether others reach this peer: it has the coordinator call it back before it joins."""

from __future__ import annotations

import logging
import secrets

from peer.algorithms.core import PeerId
from peer.transport.probe import CalledBack, CoordinatorProbe
from peer.transport.server import PeerServer
from relayswarm.errors import JoinError
from relayswarm.net.security import Security

TRIES = 3  # a machine on which everything starts at once may be slow to answer

log = logging.getLogger("relayswarm.peer")


def require_way_back(
    server: PeerServer, peer_id: PeerId, address: str, coordinator: str, security: Security
) -> None:
    """Raise JoinError if the coordinator finds that nobody answers at HOST:PORT, or somebody else.

    One that cannot tell, as it sees this peer at another host than is advertised or is asked too
    often, is no reason to stay away.
    """
    nonce = f"peer-{secrets.token_hex(16)}"
    server.answer_as(nonce)
    problem = ""
    for _ in range(TRIES):
        answer = _call_back(peer_id, address, nonce, coordinator, security)
        if answer is None or answer.reached:
            return
        problem = answer.problem
        if answer.untried:
            log.debug("whether others reach %s is not known: %s", address, problem)
            return
    raise JoinError(
        f"--advertise = {address!r}: when the coordinator calls back {problem}; open that "
        "port to the others and advertise what leads there, or if nothing can be let in start with "
        "--reachability dial-only"
    )


def _call_back(
    peer_id: PeerId, address: str, nonce: str, coordinator: str, security: Security
) -> CalledBack | None:
    """What the coordinator that leads found; None if it does not say."""
    for one in coordinator.split(","):
        with CoordinatorProbe(one, security) as probe:
            try:
                return probe.call_back(peer_id, address, nonce)
            except JoinError as error:
                log.debug("%s does not call back: %s", one, error)
    return None
