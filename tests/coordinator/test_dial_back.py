"""Being called back: only where one is, only for health, and not too often."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from coordinator import dial_back
from coordinator.dial_back import BURST, DialBack, TooOftenError, UntriedError, host_of
from peer.transport.probe import answering
from relayswarm import __version__
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.net.security import PLAIN, Security

NONCE = "made-up-by-the-caller"
LOCAL = "127.0.0.1"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dialler(clock: Clock) -> DialBack:
    return DialBack(PLAIN, clock)


@contextmanager
def dialled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Where connections were opened to."""
    places: list[str] = []
    real = dial_back.open_channel

    def open_channel(address: str, *arguments: Any, **more: Any) -> grpc.Channel:
        places.append(address)
        return real(address, *arguments, **more)

    monkeypatch.setattr(dial_back, "open_channel", open_channel)
    yield places


def test_who_serves_where_it_says_is_reached(dialler: DialBack) -> None:
    with answering(f"{LOCAL}:0", PLAIN) as (address, nonce):
        assert dialler.problem(LOCAL, address, "", nonce) == ""
        assert dialler.problem(LOCAL, address.replace(LOCAL, "localhost"), "", nonce) == ""


def test_somebody_else_there_is_not_taken_for_the_caller(dialler: DialBack) -> None:
    with answering(f"{LOCAL}:0", PLAIN) as (address, _):
        assert dialler.problem(LOCAL, address, "", NONCE) == "somebody else answers there"


def test_nobody_there(dialler: DialBack) -> None:
    with answering(f"{LOCAL}:0", PLAIN) as (address, nonce):
        pass
    assert dialler.problem(LOCAL, address, "", nonce) == "nobody answers there"


@pytest.mark.parametrize(
    "address", ["10.1.2.3:22", "[::2]:50051", "0.0.0.0:50051", "169.254.169.254:80", "8.8.8.8:53"]
)
def test_another_host_is_never_dialled(
    dialler: DialBack, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    why = "is not where this call comes from, 192.0.2.7: it cannot be tried"
    with dialled(monkeypatch) as places, pytest.raises(UntriedError, match=re.escape(why)):
        dialler.problem("192.0.2.7", address, "", NONCE)
    assert places == []


def test_of_a_name_the_address_that_was_compared_is_dialled(
    dialler: DialBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it resolved anew, it could be another one by then."""
    with answering(f"{LOCAL}:0", PLAIN) as (address, nonce), dialled(monkeypatch) as places:
        port = address.rpartition(":")[2]
        assert dialler.problem(LOCAL, f"localhost:{port}", "", nonce) == ""
    assert places == [address]


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1", "127.0.0.1:99999", "x" * 10_000])
def test_what_is_no_address_is_not_dialled(
    dialler: DialBack, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with dialled(monkeypatch) as places:
        assert "not of the form HOST:PORT" in dialler.problem(LOCAL, address, "", NONCE)
    assert places == []


@pytest.mark.parametrize("nonce", ["", "short", "x" * 65, "grpc.health.v1.Health", "a b" * 10])
def test_only_a_made_up_name_is_asked_for(dialler: DialBack, nonce: str) -> None:
    with answering(f"{LOCAL}:0", PLAIN) as (address, _):
        assert dialler.problem(LOCAL, address, "", nonce).startswith("nonce: ")


def test_not_too_often(dialler: DialBack, clock: Clock) -> None:
    def ask() -> None:
        with pytest.raises(UntriedError):
            dialler.problem("192.0.2.7", "192.0.2.8:1", "", NONCE)

    for _ in range(BURST):
        ask()
    with pytest.raises(TooOftenError):
        ask()
    clock.now += 2 * dial_back.EVERY_S
    ask()
    ask()
    with pytest.raises(TooOftenError):
        ask()
    clock.now += 1e6  # a long pause allows no more than the burst
    for _ in range(BURST):
        ask()
    with pytest.raises(TooOftenError):
        ask()


def test_one_at_a_time(dialler: DialBack, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_again(*_: object) -> set[str]:
        with pytest.raises(TooOftenError):
            dialler.problem(LOCAL, f"{LOCAL}:1", "", NONCE)
        return set()

    monkeypatch.setattr(dial_back, "_addresses", ask_again)
    with pytest.raises(UntriedError):
        dialler.problem(LOCAL, f"{LOCAL}:1", "", NONCE)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.7:50051", "192.0.2.7"),
        ("ipv6:[2001:db8::1]:50051", "2001:db8::1"),
        ("ipv6:%5B2001:db8::1%5D:50051", "2001:db8::1"),
        ("ipv6:[::ffff:192.0.2.7]:50051", "192.0.2.7"),
        ("unix:/tmp/socket", ""),
        ("ipv4:nonsense:1", ""),
    ],
)
def test_who_calls(peer: str, host: str) -> None:
    assert host_of(peer) == host


def test_a_caller_without_an_address_is_not_called_back(dialler: DialBack) -> None:
    with pytest.raises(UntriedError):
        dialler.problem("", "nowhere.invalid:1", "", NONCE)


def test_the_service_says_that_it_has_not_called(serve: Callable[..., Any]) -> None:
    """A peer behind a proxy or NAT joins all the same: nobody knows that it cannot be reached."""
    request = pb.CheckReachabilityRequest(advertised_address="192.0.2.7:1", nonce=NONCE)
    answer = serve().stub.CheckReachability(request, timeout=20.0)
    assert (answer.reached, answer.untried) == (False, True)
    assert "it cannot be tried" in answer.problem


# --- the service --------------------------------------------------------------------------------


def test_the_service_calls_back(serve: Callable[..., Any]) -> None:
    running = serve()
    with answering(f"{LOCAL}:0", PLAIN) as (address, nonce):
        request = pb.CheckReachabilityRequest(advertised_address=address, nonce=nonce)
        answer = running.stub.CheckReachability(request, timeout=20.0)
        assert (answer.reached, answer.problem, answer.seen_host) == (True, "", LOCAL)
        assert answer.release == __version__
        assert answer.time_s > 1.7e9
        for _ in range(BURST - 1):
            running.stub.CheckReachability(request, timeout=20.0)
        with pytest.raises(grpc.RpcError) as refused:
            running.stub.CheckReachability(request, timeout=20.0)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_with_tls_it_must_be_the_peer_of_that_name(
    serve: Callable[..., Any], certificates: Callable[..., Security]
) -> None:
    from relayswarm.coordinator.v1 import coordinator_pb2_grpc as pb_grpc
    from relayswarm.net.sockets import open_channel

    running = serve(security=certificates("coordinator"))
    own, other = certificates("peer-0"), certificates("peer-1")
    with (
        open_channel(running.server.address, own) as channel,
        answering(f"{LOCAL}:0", own) as (mine, nonce),
        answering(f"{LOCAL}:0", other) as (theirs, another),
    ):
        stub = pb_grpc.CoordinatorServiceStub(channel)

        def reached(address: str, name: str, nonce: str) -> bool:
            request = pb.CheckReachabilityRequest(
                peer_id=name, advertised_address=address, nonce=nonce
            )
            answer: bool = stub.CheckReachability(request, timeout=20.0).reached
            return answer

        assert reached(mine, "peer-0", nonce)
        assert reached(mine, "", nonce)  # its name is that of its certificate
        assert not reached(theirs, "peer-0", another)
        with pytest.raises(grpc.RpcError) as refused:
            reached(theirs, "peer-1", another)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
