"""A peer's gRPC server: takes messages in, serves the model and the peer's state.

The synchronous API is used because it moves large payloads faster than the asyncio one; each
stream holds a thread of the pool while it lasts. What a remote peer does wrong becomes a verdict
or an INVALID_ARGUMENT, and never stops the server.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

from peer.transport.channel import SERVER_OPTIONS
from peer.transport.contract import Contract, Handler
from peer.transport.service import PeerService
from peer.transport.wire import SERVICE
from relayswarm.net.gate import Gate
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.sockets import open_port

MAX_WORKERS = 32
MAX_WAITING = 256  # calls; beyond it callers are told RESOURCE_EXHAUSTED at once


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
        reflection: bool = False,
        max_workers: int = MAX_WORKERS,
    ) -> None:
        self._threads = ThreadPoolExecutor(max_workers, thread_name_prefix="relayswarm-serve")
        self._server = grpc.server(
            self._threads, options=SERVER_OPTIONS, maximum_concurrent_rpcs=max_workers + MAX_WAITING
        )
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=self._threads
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        service = PeerService(handler, contract, Gate(None, handler.denied))
        self._server.add_generic_rpc_handlers((service.rpc_handler(),))
        if reflection:
            names = (SERVICE, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME)
            grpc_reflection.enable_server_reflection(names, self._server)
        self.address = open_port(self._server, listen, security)

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()
        for service in ("", SERVICE):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float = 1.0) -> None:
        """Take no more calls, let those under way end within `grace_s`, then cut them off."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._threads.shutdown(wait=False)
