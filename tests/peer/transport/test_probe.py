"""What the line to a neighbour is like, by its model, however small."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import torch

from peer.transport import probe
from peer.transport.probe import FEWEST_BYTES, PAIRS, Line, Rate, line_to, rate_of
from peer.transport.snapshots import READERS
from peer.transport.wire import SERVICE, chunk_bytes
from relayswarm.net.security import PLAIN
from relayswarm.peer.v1 import peer_pb2 as pb

Answer = Callable[[pb.ReadModelRequest], Iterator[bytes]]


@pytest.fixture
def line(tools: Any) -> Callable[[Answer], Line]:
    """The line to a foreign peer that answers ReadModel like this."""

    def measured(answer: Answer) -> Line:
        methods = {
            "ReadModel": grpc.unary_stream_rpc_method_handler(
                lambda request, _: answer(request),
                request_deserializer=pb.ReadModelRequest.FromString,
            ),
            "GetState": grpc.unary_unary_rpc_method_handler(
                lambda _, __: pb.GetStateResponse(),
                request_deserializer=pb.GetStateRequest.FromString,
                response_serializer=pb.GetStateResponse.SerializeToString,
            ),
        }
        return line_to("peer", tools.grpc_server(SERVICE, methods), "run", PLAIN)

    return measured


def serve(tools: Any, elements: int) -> tuple[Any, str]:
    """A peer of ours with a model of so many float32; what it reports, and its address."""
    handler = tools.Handler(model=torch.randn(elements), tensors=(("w", (elements,)),))
    return handler, tools.server(handler, tools.contract(elements)).address


def header(model_bytes: int) -> bytes:
    told = pb.ModelHeader(snapshot_id=7, payload_bytes=model_bytes)
    return pb.ReadModelResponse(header=told).SerializeToString()


# --- what pairs tell ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("longer_s", "rate"),
    [
        ([0.5] * 10, Rate(200.0)),
        ([0.5] * 9 + [30.0], Rate(200.0)),  # something else came between
        ([0.5] * 9 + [-0.2], Rate(200.0)),
        ([0.5] * 8 + [30.0, 2.0], Rate(50.0, at_least=True)),
        ([0.1, -0.1] * 5, Rate(1000.0, at_least=True)),  # only noise
        ([-0.1] * 10, Rate(1000.0, at_least=True)),
        ([0.5, 0.4, 9.0], Rate(200.0)),
    ],
)
def test_a_rate_is_told_where_pairs_agree_and_else_a_bound(
    longer_s: list[float], rate: Rate
) -> None:
    found = rate_of([(1.0 + more, 1.0) for more in longer_s], 100)
    assert found.at_least == rate.at_least
    assert found.bytes_per_s == pytest.approx(rate.bytes_per_s)


# --- what is measured ---------------------------------------------------------------------------


def test_a_slow_line_is_told_by_a_small_model(line: Callable[[Answer], Line]) -> None:
    """Each byte takes its time, and so does each call."""
    per_s, model = 50_000.0, bytes(20_000)
    calls: list[pb.ReadModelRequest] = []

    def answer(request: pb.ReadModelRequest) -> Iterator[bytes]:
        calls.append(request)
        left = model[request.offset :]
        threading.Event().wait(0.1 + len(left) / per_s)  # this is the line
        yield header(len(model))
        yield chunk_bytes(request.offset, left)
        yield pb.ReadModelResponse(trailer=pb.Trailer()).SerializeToString()

    rate = line(answer).rate
    assert not rate.at_least
    assert rate.bytes_per_s == pytest.approx(per_s, rel=0.5)
    assert [(one.snapshot_id, one.offset) for one in calls[1:3]] == [(7, 0), (7, 19_999)]
    assert len(calls) < 1 + 2 * PAIRS  # a second for the bytes is enough


def test_small_models_are_read_from_one_snapshot(tools: Any) -> None:
    """Training is not held up again."""
    handler, address = serve(tools, FEWEST_BYTES // 4)
    rate = line_to("peer", address, "run", PLAIN).rate
    assert rate.bytes_per_s
    assert rate.bytes_per_s > 0
    assert len(handler.of("snapshot")) == 1


def test_a_large_model_is_read_once(tools: Any) -> None:
    _, address = serve(tools, 1 << 20)
    rate = line_to("peer", address, "run", PLAIN).rate
    assert rate.bytes_per_s
    assert (rate.at_least, rate.why) == (False, "")


def test_a_tiny_model_tells_nothing(tools: Any) -> None:
    _, address = serve(tools, FEWEST_BYTES // 4 - 1)
    rate = line_to("peer", address, "run", PLAIN).rate
    assert rate == Rate(None, why="its model is too small to tell a rate")


def test_a_model_that_may_not_be_read_is_not_called_small(tools: Any) -> None:
    handler, address = serve(tools, 10_000)
    handler.judge_reader = lambda _: "this site lets nobody read"
    rate = line_to("peer", address, "run", PLAIN).rate
    assert rate == Rate(None, why="its model cannot be read: this site lets nobody read")


def test_a_model_that_too_many_read_is_not_called_small(tools: Any) -> None:
    _, address = serve(tools, 40 << 20)  # so large that a reader who waits keeps its place
    stub = tools.stub(address)
    readers = [stub.ReadModel(pb.ReadModelRequest(run_id="run")) for _ in range(READERS)]
    for reader in readers:
        next(reader)
    rate = line_to("peer", address, "run", PLAIN).rate
    assert rate.bytes_per_s is None
    assert rate.why.startswith("its model cannot be read: too many are reading")


@pytest.mark.parametrize("messages", [[], [chunk_bytes(0, b"x")], [b"\xff"]])
def test_nonsense_tells_nothing(line: Callable[[Answer], Line], messages: list[bytes]) -> None:
    rate = line(lambda _: iter(messages)).rate
    assert rate.bytes_per_s is None
    assert rate.why.startswith("its model cannot be read: ")


def test_a_model_that_does_not_come_is_slow(
    line: Callable[[Answer], Line], tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PATIENCE_S", 2.0)
    over = threading.Event()
    tools.callback(over.set)

    def answer(_: pb.ReadModelRequest) -> Iterator[bytes]:
        yield header(1 << 20)
        over.wait()

    assert line(answer).rate == Rate(0.0, why="nothing of its model came in 2 s")
