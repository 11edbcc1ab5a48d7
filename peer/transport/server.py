"""A peer's gRPC server: takes messages in, serves the model and the peer's state.

The synchronous API is used because it moves large payloads faster than the asyncio one; each
stream holds a thread of the pool while it lasts. What a remote peer does wrong becomes a verdict
or a status, and never stops the server.
"""

from __future__ import annotations

from peer.transport.collectors import STREAMS, Collectors
from peer.transport.contract import Contract, Handler, Ledger
from peer.transport.intake import Intake
from peer.transport.service import PeerService
from peer.transport.visits import Visits
from peer.transport.wire import MESSAGE_LIMIT, SERVICE
from relayswarm.net.bounds import STALL_S
from relayswarm.net.gate import Gate
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.server import Server

MAX_WORKERS = 32


class PeerServer:
    """Serves PeerService, gRPC health and, if asked, reflection, until stopped.

    `address` is HOST:PORT with the port that was really taken. Raises ConfigError if `listen` is
    unusable, or `security` does not do for it.
    """

    def __init__(
        self,
        handler: Handler,
        contract: Contract,
        listen: str,
        security: Security = PLAIN,
        *,
        visits: Visits | None = None,
        collectors: Collectors | None = None,
        reflection: bool = False,
        max_workers: int = MAX_WORKERS,
        stall_s: float = STALL_S,
        ledger: Ledger | None = None,
    ) -> None:
        intake, gate = Intake(handler, contract), Gate(None, handler.denied)
        service = PeerService(
            intake, visits or Visits(), collectors or Collectors(), gate, ledger
        ).rpc_handler()
        self._server = Server(
            SERVICE,
            lambda server: server.add_generic_rpc_handlers((service,)),
            listen,
            security,
            handler.denied,
            threads=max_workers,
            kept=STREAMS,
            largest_message=MESSAGE_LIMIT,
            reflection=reflection,
            stall_s=stall_s,
        )
        self.address = self._server.address

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()

    def answer_as(self, name: str) -> None:
        """Say that a service of that name is healthy here: a caller can tell by it who answers."""
        self._server.answer_as(name)

    def stop(self, grace_s: float = 1.0) -> None:
        """Take no more calls, let those under way end within `grace_s`, then cut them off."""
        self._server.stop(grace_s)
