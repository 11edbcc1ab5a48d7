"""Who gets a word in at the coordinator: by certificate, and by token."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.conductor import Denied
from coordinator.health import check_health
from coordinator.metrics import Metrics
from coordinator.status import fetch
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from relayswarm.errors import JoinError
from relayswarm.net.clients import Clients
from relayswarm.net.gate import Denial
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.sockets import open_channel

PATIENCE_S = 20.0
TOKEN, OTHER = "secret-0123456789abc", "other-0123456789abcd"
Certificates = Callable[..., Security]
Stub = Callable[..., pb_grpc.CoordinatorServiceStub]

JOIN = {"min_protocol_version": 1, "max_protocol_version": 1, "incarnation": 1}
MEMBER = {"run_id": "run", "incarnation": 1}

CALLS: dict[str, Callable[..., Any]] = {
    "Join": lambda stub, peer, **more: stub.Join(pb.JoinRequest(peer_id=peer, **JOIN), **more),
    "RenewLease": lambda stub, peer, **more: stub.RenewLease(
        pb.RenewLeaseRequest(peer_id=peer, **MEMBER), **more
    ),
    "Leave": lambda stub, peer, **more: stub.Leave(pb.LeaveRequest(peer_id=peer, **MEMBER), **more),
    "WatchTopology": lambda stub, peer, **more: next(
        stub.WatchTopology(pb.WatchTopologyRequest(peer_id=peer, **MEMBER), **more)
    ),
    "CheckReachability": lambda stub, peer, **more: stub.CheckReachability(
        pb.CheckReachabilityRequest(peer_id=peer), **more
    ),
    "GetStatus": lambda stub, _, **more: stub.GetStatus(pb.GetStatusRequest(), **more),
}

IN_A_NAME = [method for method in CALLS if method != "GetStatus"]


def status(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code(), refused.value.details()


@pytest.fixture
def caller() -> Iterator[Stub]:
    """A stub with credentials: `caller(running, security)`."""
    with ExitStack() as stack:

        def stub(running: Any, security: Security = PLAIN) -> pb_grpc.CoordinatorServiceStub:
            channel = open_channel(running.server.address, security)
            return pb_grpc.CoordinatorServiceStub(stack.enter_context(channel))

        yield stub


def ends_with(method: str, stub: Any, token: str | None = None) -> grpc.StatusCode:
    """How a call as peer-0 ends that shows this token."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        CALLS[method](stub, "peer-0", metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", IN_A_NAME)
def test_a_certificate_speaks_for_its_own_name_only(
    serve: Callable[..., Any], caller: Stub, certificates: Certificates, method: str
) -> None:
    running = serve("peers = 1", security=certificates("coordinator"))
    mine, theirs = (caller(running, certificates(f"peer-{k}")) for k in (0, 1))
    address = {"advertised_address": "127.0.0.1:9", "model_fingerprint": 1}
    mine.Join(pb.JoinRequest(peer_id="peer-0", **JOIN, **address))
    code, text = status(lambda: CALLS[method](theirs, "peer-0"))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text == "peer_id = 'peer-0': the certificate is that of peer-1; use its own"
    assert running.await_notice(Denied).denial is Denial.IDENTITY
    assert list(running.conductor.membership.members) == ["peer-0"]
    assert ends_with(method, mine) is not grpc.StatusCode.PERMISSION_DENIED


def test_who_wants_no_id_is_called_as_its_certificate_is(
    serve: Callable[..., Any], caller: Stub, certificates: Certificates
) -> None:
    running = serve(security=certificates("coordinator"))
    stub = caller(running, certificates("peer-2"))
    assert stub.Join(pb.JoinRequest(**JOIN)).peer_id == "peer-2"


@pytest.mark.parametrize("kind", ["plain", "no certificate"])
def test_without_a_certificate_there_is_no_call(
    serve: Callable[..., Any], caller: Stub, certificates: Certificates, kind: str
) -> None:
    running = serve(security=certificates("coordinator"))
    bare = certificates("peer-0", cert=None, key=None)
    stub = caller(running, bare if kind == "no certificate" else PLAIN)
    assert status(lambda: CALLS["Join"](stub, "peer-0"))[0] is grpc.StatusCode.UNAVAILABLE
    assert not running.conductor.membership.candidates


def test_any_client_may_join_where_none_needs_a_certificate(
    serve: Callable[..., Any], caller: Stub, certificates: Certificates
) -> None:
    running = serve(security=certificates("coordinator", clients=Clients.ANY))
    stub = caller(running, certificates("peer-0", cert=None, key=None))
    assert CALLS["Join"](stub, "peer-7").peer_id == "peer-7"


def test_the_coordinator_must_be_who_it_is_said_to_be(
    serve: Callable[..., Any], caller: Stub, certificates: Certificates
) -> None:
    """A peer's certificate does not do for the coordinator's host."""
    running = serve(security=certificates("peer-1"))
    stub = caller(running, certificates("peer-0"))
    assert status(lambda: CALLS["Join"](stub, "peer-0"))[0] is grpc.StatusCode.UNAVAILABLE


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(CALLS))
def test_every_call_needs_a_token_where_there_are_some(
    serve: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    running = serve("peers = 1", security=Security(token_file=tokens))
    metrics = Metrics(running.conductor)
    running.conductor.listeners.append(metrics)
    for wrong in (None, OTHER):
        assert ends_with(method, running.stub, wrong) is grpc.StatusCode.UNAUTHENTICATED
    count = metrics.registry.get_sample_value
    name = "relayswarm_coordinator_calls_denied_total"
    assert count(name, {"reason": "token"}) == 2
    assert not running.conductor.membership.candidates
    assert ends_with(method, running.stub, TOKEN) is not grpc.StatusCode.UNAUTHENTICATED
    assert count(name, {"reason": "token"}) == 2


def test_tokens_are_rotated_while_the_coordinator_runs(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    running = serve(security=Security(token_file=tokens))
    denied = grpc.StatusCode.UNAUTHENTICATED
    for content, old, new in (
        (TOKEN, grpc.StatusCode.OK, denied),
        (f"{OTHER}\n{TOKEN}", grpc.StatusCode.OK, grpc.StatusCode.OK),
        (OTHER, denied, grpc.StatusCode.OK),
    ):
        tokens.write_text(content)
        assert ends_with("Join", running.stub, TOKEN) is old
        assert ends_with("Join", running.stub, OTHER) is new


# --- people who ask -------------------------------------------------------------------------------


def test_status_shows_certificate_and_token(
    serve: Callable[..., Any], certificates: Certificates, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    running = serve(security=certificates("coordinator", token_file=tokens))
    address = running.server.address
    assert fetch(address, certificates("operator", token_file=tokens)).run_id == "run"
    with pytest.raises(JoinError, match="refused: no valid token; give --token-file"):
        fetch(address, certificates("operator"))
    with pytest.raises(JoinError, match="whether it wants TLS"):
        fetch(address, PLAIN)
    with pytest.raises(JoinError, match="its certificate and yours"):
        fetch(address, certificates("operator", name="peer-0"))


def test_health_is_asked_over_tls_and_without_token(
    serve: Callable[..., Any], certificates: Certificates, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    running = serve(security=certificates("coordinator", token_file=tokens))
    check_health(running.server.address, PATIENCE_S, certificates("operator"))
    with pytest.raises(JoinError, match="does not serve"):
        check_health(running.server.address, 2.0, PLAIN)
