"""A gRPC server as coordinator and peers run it: bounded, asked for its health, on a port.

What belongs here: what both have in common. What is served is for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from relayswarm.net.bounds import STALL_S, Bounds
from relayswarm.net.gate import OnDenied
from relayswarm.net.security import Security
from relayswarm.net.sockets import open_port

CALLERS = 4  # so many callers, at least, it takes to keep most threads waiting
FREE = 4  # a part of the threads, one in so many, that is never kept waiting
MAX_WAITING = 256  # calls; beyond it callers are told RESOURCE_EXHAUSTED at once
STREAMS = 64  # at a time over one connection; a caller's further calls wait on its own side

OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_concurrent_streams", STREAMS),
    ("grpc.so_reuseport", 0),  # a port that is taken must be an error, not shared with a stranger
    # A line may be quiet for long: its keepalive pings are welcome.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A caller that hangs or a cable that is cut is noticed within 15 s, whoever waits for whom.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class Server:
    """Serves one service, gRPC health and, if asked, reflection, until stopped.

    `address` is HOST:PORT with the port that was really taken. `on_denied` hears of every call that
    was turned away or cut off. Beside `threads` for calls as they come there may be `kept` ones,
    for calls that wait long by agreement. Raises ConfigError if `listen` is unusable, or `security`
    does not do for it.
    """

    def __init__(
        self,
        name: str,
        add: Callable[[grpc.Server], None],
        listen: str,
        security: Security,
        on_denied: OnDenied,
        *,
        threads: int,
        kept: int = 0,
        largest_message: int,
        reflection: bool = False,
        stall_s: float = STALL_S,
    ) -> None:
        self._name = name
        self._threads = ThreadPoolExecutor(threads + kept, thread_name_prefix="relayswarm-serve")
        self._bounds = Bounds(on_denied, threads // CALLERS, threads - threads // FREE, stall_s)
        self._server = grpc.server(
            self._threads,
            interceptors=[self._bounds],
            options=(*OPTIONS, ("grpc.max_receive_message_length", largest_message)),
            maximum_concurrent_rpcs=threads + kept + MAX_WAITING,
        )
        add(self._server)
        self._health = health.HealthServicer()
        self._server.add_generic_rpc_handlers((_health_checks(self._health),))
        if reflection:
            _reflect(self._server, name)
        self.address = open_port(self._server, listen, security)

    def start(self) -> None:
        """Begin to serve."""
        self._bounds.start()
        self._server.start()
        for service in ("", self._name):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def answer_as(self, name: str) -> None:
        """Say to whoever asks for the health of a service of that name that it serves."""
        self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Take no more calls, let those under way end within `grace_s`, then cut them off."""
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(grace_s)
        meanwhile()
        stopped.wait()
        self._bounds.stop()
        self._threads.shutdown(wait=False)


def _health_checks(servicer: health.HealthServicer) -> grpc.GenericRpcHandler:
    """Without `Watch`, which would hold a thread for each caller that likes."""
    check = grpc.unary_unary_rpc_method_handler(
        servicer.Check,
        health_pb2.HealthCheckRequest.FromString,
        health_pb2.HealthCheckResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Check": check})


def _reflect(server: grpc.Server, name: str) -> None:
    from grpc_reflection.v1alpha import reflection

    names = (name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
