"""The server's life: address, health, reflection, state."""

import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from peer.transport import wire
from peer.transport.server import PeerServer
from relayswarm.errors import ConfigError
from relayswarm.peer.v1 import peer_pb2 as pb


@pytest.fixture
def handler(tools: Any) -> Any:
    return tools.Handler()


def status(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def test_tells_its_state(tools: Any, handler: Any) -> None:
    stub = tools.stub(tools.server(handler, tools.contract()).address)
    assert stub.GetState(pb.GetStateRequest()) == pb.GetStateResponse(
        run_id="run",
        peer_id="receiver",
        incarnation=5,
        epoch=pb.Epoch(term=2, number=3, digest=4),
        step=9,
        loss=0.25,
        state="training",
        models_counted=8,
        steps_per_s=2.5,
    )


def test_health_follows_the_servers_life(tools: Any, handler: Any) -> None:
    server = PeerServer(handler, tools.contract(), "127.0.0.1:0")
    server.start()
    stub = health_pb2_grpc.HealthStub(tools.channel(server.address))
    for service in ("", wire.SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=wire.SERVICE))  # holds a thread
    assert status(lambda: next(watch)) is grpc.StatusCode.UNIMPLEMENTED
    server.stop()
    assert status(lambda: stub.Check(health_pb2.HealthCheckRequest())) is (
        grpc.StatusCode.UNAVAILABLE
    )


@pytest.mark.parametrize("reflection", [False, True])
def test_reflection_on_request(tools: Any, handler: Any, reflection: bool) -> None:
    server = tools.server(handler, tools.contract(), reflection=reflection)
    stub = reflection_pb2_grpc.ServerReflectionStub(tools.channel(server.address))
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    if not reflection:
        assert status(lambda: list(stub.ServerReflectionInfo(iter([ask])))) is (
            grpc.StatusCode.UNIMPLEMENTED
        )
        return
    (answer,) = stub.ServerReflectionInfo(iter([ask]))
    assert wire.SERVICE in [s.name for s in answer.list_services_response.service]


def test_port_0_is_any_port(tools: Any, handler: Any) -> None:
    first = tools.server(handler, tools.contract())
    second = tools.server(handler, tools.contract())
    assert first.address != second.address
    host, port = first.address.split(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_a_port_that_is_taken_is_one_clear_error(tools: Any, handler: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"--listen = '{listen}'.*taken.*choose another"):
            PeerServer(handler, tools.contract(), listen)


def test_two_peers_cannot_share_a_port(tools: Any, handler: Any) -> None:
    address = tools.server(handler, tools.contract()).address
    with pytest.raises(ConfigError, match="taken"):
        PeerServer(handler, tools.contract(), address)


@pytest.mark.parametrize("listen", ["", "50051", "localhost", "host:port", "a:70000", "http://a:1"])
def test_an_address_that_is_none_is_one_clear_error(tools: Any, handler: Any, listen: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        PeerServer(handler, tools.contract(), listen)
