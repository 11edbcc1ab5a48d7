"""mTLS between peers: each speaks for the name in its certificate, on both ends of a line."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch

from peer.algorithms.core import Verdict
from peer.hellos import Seat
from peer.transport.bpdus import Greeter
from peer.transport.read_model import ReadModelError, read_model
from relayswarm.net.certificates import make_certificates
from relayswarm.net.clients import Clients
from relayswarm.net.gate import Denial
from relayswarm.net.security import Security
from tests.peer.transport.test_bpdus import example

Certificates = Callable[..., Security]
LARGE = 600_000  # elements of float32: a stream


@pytest.fixture
def handler(tools: Any) -> Any:
    return tools.Handler()


def post(tools: Any, handler: Any, sender: Security, to: str, elements: int = 1000) -> Any:
    """Has `sender` post a message to `to`, whom peer-1 answers; returns what the sender reports."""
    contract = tools.contract(elements)
    server = tools.server(handler, contract, security=handler.security)
    reports = tools.Reports()
    outbox = tools.outbox(reports, contract, security=sender)
    outbox.set_addresses({to: server.address})
    outgoing = tools.Outgoing(torch.ones(elements))
    outbox.send(to, tools.head(sender="peer-0"), outgoing)
    return reports


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_peers_relay_over_tls(
    tools: Any, handler: Any, certificates: Certificates, elements: int
) -> None:
    handler.security = certificates("peer-1")
    reports = post(tools, handler, certificates("peer-0"), "peer-1", elements)
    ((_, _, verdict),) = reports.wait("sent")
    assert verdict is Verdict.ACCEPTED
    ((_, vectors),) = handler.wait("received")
    assert torch.equal(vectors[0], torch.ones(elements))
    assert not handler.of("denied")


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_nobody_sends_in_anothers_name(
    tools: Any, handler: Any, certificates: Certificates, elements: int
) -> None:
    handler.security = certificates("peer-1")
    reports = post(tools, handler, certificates("peer-2"), "peer-1", elements)
    assert reports.wait("sent")[0][2] is None
    denial, text = handler.wait("denied")[0]
    assert denial is Denial.IDENTITY
    assert text == "peer_id = 'peer-0': the certificate is that of peer-2; use its own"
    assert not handler.of("admit")
    assert not handler.of("received")


def test_a_message_goes_only_to_whom_it_is_for(
    tools: Any, handler: Any, certificates: Certificates
) -> None:
    """Whoever sits at a peer's address gets nothing without the peer's certificate."""
    handler.security = certificates("peer-1")
    reports = post(tools, handler, certificates("peer-0"), "peer-2")
    reports.wait("unreachable")
    assert not handler.of("admit")


def test_a_bridge_speaks_for_itself_only(
    tools: Any, handler: Any, certificates: Certificates
) -> None:
    """Who could speak for another could pass for the lowest root."""
    address = tools.server(handler, tools.contract(), security=certificates("peer-0")).address
    with closing(Greeter("run", certificates("peer-2"), timeout_s=20.0)) as impostor:
        impostor.say(Seat("peer-0", 7, address), example())
        ((denial, text),) = handler.wait("denied")
    assert denial is Denial.IDENTITY
    assert text == "peer_id = 'peer-1': the certificate is that of peer-2; use its own"
    assert not handler.of("greeted")


def test_a_bridge_speaks_only_to_whom_it_means(
    tools: Any, handler: Any, certificates: Certificates
) -> None:
    address = tools.server(handler, tools.contract(), security=certificates("peer-0")).address
    with closing(Greeter("run", certificates("peer-1"), timeout_s=20.0)) as greeter:
        greeter.say(Seat("peer-2", 7, address), replace(example(), beat=99))
        for count in range(1, 10):  # in turn: what went the wrong way would be here by then
            greeter.say(Seat("peer-0", 7, address), example())
            handler.wait("greeted", count)
    assert all(hello == example() for (hello,) in handler.of("greeted"))


@pytest.mark.parametrize("caller", ["nothing", "no certificate", "another CA's"])
def test_who_has_no_certificate_of_the_ca_gets_no_word_in(
    tools: Any, handler: Any, certificates: Certificates, tmp_path: Any, caller: str
) -> None:
    make_certificates(tmp_path, ["peer-0"], [], days=1)
    foreign = {"cert": tmp_path / "peer-0.pem", "key": tmp_path / "peer-0.key"}
    security = {
        "nothing": Security(),
        "no certificate": certificates("peer-0", cert=None, key=None),
        "another CA's": certificates("peer-0", **foreign),
    }[caller]
    server = tools.server(handler, tools.contract(), security=certificates("peer-1"))
    stub = tools.stub(server.address, security, "peer-1")
    request = tools.unary(tools.header(tools.head(), tools.contract()), torch.ones(1000))
    with pytest.raises(grpc.RpcError) as refused:
        stub.RelayUnary(request, timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not handler.of("bytes_in")


def test_a_server_of_another_ca_is_not_believed(
    tools: Any, handler: Any, certificates: Certificates, tmp_path: Any
) -> None:
    make_certificates(tmp_path, ["peer-1"], [], days=1)
    files = {"ca": "ca.pem", "cert": "peer-1.pem", "key": "peer-1.key"}
    handler.security = Security(**{k: tmp_path / file for k, file in files.items()})
    reports = post(tools, handler, certificates("peer-0"), "peer-1")
    reports.wait("unreachable")
    assert not handler.of("admit")


def test_with_any_clients_a_name_is_only_a_name(
    tools: Any, handler: Any, certificates: Certificates
) -> None:
    handler.security = certificates("peer-1", clients=Clients.ANY)
    caller = certificates("peer-0", cert=None, key=None)
    reports = post(tools, handler, caller, "peer-1")
    assert reports.wait("sent")[0][2] is Verdict.ACCEPTED


def test_a_model_is_read_from_who_is_meant(
    tools: Any, handler: Any, certificates: Certificates
) -> None:
    handler.model, handler.tensors = torch.randn(7), (("w", (7,)),)
    server = tools.server(handler, tools.contract(7), security=certificates("peer-1"))
    operator = certificates("operator")
    with pytest.raises(ReadModelError, match="UNAVAILABLE"):
        read_model(server.address, operator, peer_id="peer-2", patience_s=0.2)
    with pytest.raises(ReadModelError, match="is 'receiver', not 'peer-1'"):
        read_model(server.address, operator, peer_id="peer-1")
    named = certificates("operator", name="peer-1")
    assert torch.equal(read_model(server.address, named).vector, handler.model)
