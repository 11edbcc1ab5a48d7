"""Asking a gRPC server, coordinator or peer, whether it serves."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from relayswarm.errors import JoinError
from relayswarm.net.address import split_address
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.sockets import open_channel


def check_health(address: str, timeout_s: float, security: Security = PLAIN) -> None:
    """Return if HOST:PORT serves. Raises ConfigError if it is no address, JoinError if not."""
    split_address(address, "ADDRESS")
    with open_channel(address, security) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise _failed(address, error.code().name) from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise _failed(address, health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _failed(address: str, why: str) -> JoinError:
    return JoinError(
        f"ADDRESS = {address!r}: does not serve ({why.lower()}); "
        "check the address, and that coordinator or peer is running"
    )
