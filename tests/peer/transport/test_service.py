"""Messages over real gRPC, mostly from a foreign encoder: plain generated code."""

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import torch

from peer.algorithms.core import Head, Kind, Verdict
from peer.algorithms.metric_relay import Sum, SwarmMean
from peer.codec import Format, encode
from peer.transport import wire
from peer.transport.buffers import LARGE_PER_EDGE, SMALL_PER_EDGE
from peer.transport.contract import PAIR_KINDS
from relayswarm.net.gate import Denial
from relayswarm.peer.v1 import peer_pb2 as pb

LARGE = 600_000  # elements of float32: three chunks


@pytest.fixture
def handler(tools: Any) -> Any:
    return tools.Handler()


def verdict(response: Any) -> Verdict | None:
    return wire.verdict_of(getattr(response, "response", response))


def status(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


# --- messages that are taken ----------------------------------------------------------------------


def test_takes_a_whole_message(tools: Any, handler: Any) -> None:
    contract, head = tools.contract(), tools.head()
    stub = tools.stub(tools.server(handler, contract).address)
    vector = torch.randn(1000)
    request = tools.unary(tools.header(head, contract), vector)
    response = stub.RelayUnary(request).response
    assert verdict(response) is Verdict.ACCEPTED
    assert (response.step, response.epoch) == (9, pb.Epoch(term=2, number=3, digest=4))
    ((got, vectors),) = handler.of("received")
    assert got == head
    assert len(vectors) == 1
    assert torch.equal(vectors[0], vector)
    assert handler.of("admit") == [(head,)]
    assert handler.of("bytes_in") == [(request.ByteSize(),)]
    assert not handler.of("broken")


@pytest.mark.parametrize("chunk", [1 << 20, 999_999, 2 << 20])
@pytest.mark.parametrize("fmt", list(Format))
def test_takes_a_stream_of_any_encoder(tools: Any, handler: Any, chunk: int, fmt: Format) -> None:
    contract = tools.contract(LARGE, wire_format=fmt)
    stub = tools.stub(tools.server(handler, contract).address)
    vector = torch.randn(LARGE)
    payload = bytes(encode(vector, fmt))
    requests = tools.stream(tools.header(tools.head(), contract), payload, chunk)
    assert verdict(stub.Relay(requests)) is Verdict.ACCEPTED
    ((_, vectors),) = handler.of("received")
    assert torch.equal(vectors[0], vector.to(fmt.dtype).to(torch.float32))
    assert sum(count for (count,) in handler.of("bytes_in")) > len(payload)


def test_takes_two_sections_and_halves(tools: Any, handler: Any) -> None:
    contract = tools.contract(11, trees=2, sections=2)
    stub = tools.stub(tools.server(handler, contract).address)
    for tree, elements in ((0, 6), (1, 5)):
        head = tools.head(tree=tree)
        vector = torch.randn(2 * elements)
        request = tools.unary(tools.header(head, contract, sections=2), vector)
        assert verdict(stub.RelayUnary(request)) is Verdict.ACCEPTED
        got, vectors = handler.of("received")[-1]
        assert got == head
        assert torch.equal(torch.stack(vectors), vector.view(2, elements))


@pytest.mark.parametrize("stream", [False, True])
def test_an_announced_loss_needs_no_payload(tools: Any, handler: Any, stream: bool) -> None:
    contract, head = tools.contract(), tools.head(lost=True)
    stub = tools.stub(tools.server(handler, contract).address)
    message = wire.header(head, contract)
    if stream:
        response = stub.Relay(iter([pb.RelayRequest(header=message)]))
    else:
        response = stub.RelayUnary(pb.RelayUnaryRequest(header=message))
    assert verdict(response) is Verdict.ACCEPTED
    assert handler.of("lost") == [(head,)]
    assert not handler.of("received")
    assert not handler.of("broken")


def test_takes_float64_models(tools: Any, handler: Any) -> None:
    contract = tools.contract(100, dtype=torch.float64)
    stub = tools.stub(tools.server(handler, contract).address)
    vector = torch.randn(100, dtype=torch.float64)
    request = tools.unary(tools.header(tools.head(), contract), vector, Format.FLOAT64)
    assert verdict(stub.RelayUnary(request)) is Verdict.ACCEPTED
    assert torch.equal(handler.of("received")[0][1][0], vector)


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [v for v in Verdict if v is not Verdict.ACCEPTED])
def test_the_algorithms_verdict_is_given_on_the_header(
    tools: Any, handler: Any, answer: Verdict
) -> None:
    """No byte of payload is asked for: the stream below would never send one."""
    contract, head = tools.contract(LARGE), tools.head()
    handler.judge = lambda _: answer
    stub = tools.stub(tools.server(handler, contract).address)
    answered = threading.Event()

    def requests() -> Iterator[pb.RelayRequest]:
        yield pb.RelayRequest(header=tools.header(head, contract))
        assert answered.wait(20), "the verdict did not come before the payload"

    try:
        response = stub.Relay(requests())
    finally:
        answered.set()
    assert verdict(response) is answer
    assert handler.of("refused") == [(answer, head)]
    assert (response.retry_after_ms > 0) == (answer in (Verdict.EPOCH_AHEAD, Verdict.BUSY))
    assert not handler.of("broken")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"protocol_version": 2}, Verdict.VERSION),
        ({"run_id": "walk"}, Verdict.FOREIGN_RUN),
        ({"tree": 1}, Verdict.NOT_A_NEIGHBOUR),
        ({"model_fingerprint": 1}, Verdict.BAD_LENGTH),
        ({"payload_bytes": 2**60}, Verdict.BAD_LENGTH),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_breaks_the_contract_is_not_even_shown_to_the_algorithm(
    tools: Any, handler: Any, change: dict[str, Any], expected: Verdict, stream: bool
) -> None:
    contract = tools.contract()
    stub = tools.stub(tools.server(handler, contract).address)
    message = tools.header(tools.head(), contract, **change)
    request = tools.unary(message, torch.zeros(1000))
    if stream:
        response = stub.Relay(tools.stream(message, bytes(4000)))
    else:
        response = stub.RelayUnary(request)
    assert verdict(response) is expected
    assert not handler.of("admit")
    assert [refusal[0] for refusal in handler.of("refused")] == [expected]


def corrupt(requests: Iterator[pb.RelayRequest]) -> Iterator[pb.RelayRequest]:
    for request in requests:
        if request.HasField("trailer"):
            request.trailer.xxh3 ^= 1
        yield request


def resized(change: Callable[[bytes], bytes]) -> Any:
    def spoil(requests: Iterator[pb.RelayRequest]) -> Iterator[pb.RelayRequest]:
        for request in requests:
            request.data = change(request.data) if request.data else b""
            yield request

    return spoil


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (corrupt, Verdict.CHECKSUM),
        (resized(lambda data: data[:-4]), Verdict.BAD_LENGTH),
        (resized(lambda data: data + b"more"), Verdict.BAD_LENGTH),
    ],
)
def test_a_damaged_payload_is_refused_and_known_to_be_lost(
    tools: Any, handler: Any, spoil: Any, expected: Verdict
) -> None:
    contract, head = tools.contract(), tools.head()
    stub = tools.stub(tools.server(handler, contract).address)
    message = tools.header(head, contract)
    assert verdict(stub.Relay(spoil(tools.stream(message, bytes(4000))))) is expected
    assert handler.of("broken") == [(head,)]
    assert handler.of("refused") == [(expected, head)]
    assert not handler.of("received")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(tools: Any, handler: Any, bad: float) -> None:
    contract = tools.contract()
    stub = tools.stub(tools.server(handler, contract).address)
    vector = torch.zeros(1000)
    vector[999] = bad
    request = tools.unary(tools.header(tools.head(), contract), vector)
    assert verdict(stub.RelayUnary(request)) is Verdict.NOT_FINITE
    assert handler.of("broken")


def test_an_overflow_in_float16_is_not_finite(tools: Any, handler: Any) -> None:
    contract = tools.contract(wire_format=Format.FLOAT16)
    stub = tools.stub(tools.server(handler, contract).address)
    request = tools.unary(
        tools.header(tools.head(), contract), torch.full((1000,), 7e4), Format.FLOAT16
    )
    assert verdict(stub.RelayUnary(request)) is Verdict.NOT_FINITE


def test_formats_outside_the_contract_cannot_be_decoded(tools: Any, handler: Any) -> None:
    contract = tools.contract(accepted_formats=frozenset({Format.FLOAT32}))
    stub = tools.stub(tools.server(handler, contract).address)
    message = tools.header(tools.head(), contract)
    message.codec.format = pb.FORMAT_LATTICE
    assert verdict(stub.RelayUnary(tools.unary(message, torch.zeros(1000)))) is (
        Verdict.DECODE_FAILED
    )


# --- buffers --------------------------------------------------------------------------------------


def test_a_third_stream_on_an_edge_is_told_busy(tools: Any, handler: Any) -> None:
    contract = tools.contract(LARGE)
    stub = tools.stub(tools.server(handler, contract).address)
    payload = bytes(4 * LARGE)
    release = threading.Event()

    def slow(head: Head) -> Iterator[pb.RelayRequest]:
        for request in tools.stream(tools.header(head, contract), payload):
            yield request
            assert release.wait(20)

    calls = [
        stub.Relay.future(slow(tools.head(step=step))) for step in range(1, LARGE_PER_EDGE + 1)
    ]
    handler.wait("admit", LARGE_PER_EDGE)
    third = tools.stream(tools.header(tools.head(step=9), contract), payload)
    response = stub.Relay(third)
    assert verdict(response) is Verdict.BUSY
    assert response.retry_after_ms > 0
    assert handler.of("refused") == [(Verdict.BUSY, tools.head(step=9))]
    other = tools.header(tools.head(sender="another"), contract)
    assert verdict(stub.Relay(tools.stream(other, payload))) is Verdict.ACCEPTED
    release.set()
    assert [verdict(call.result()) for call in calls] == [Verdict.ACCEPTED] * LARGE_PER_EDGE


def test_small_messages_that_are_kept_are_bounded_too(tools: Any, handler: Any) -> None:
    contract = tools.contract()
    stub = tools.stub(tools.server(handler, contract).address)

    def send(step: int) -> Verdict | None:
        message = tools.header(tools.head(step=step), contract)
        return verdict(stub.RelayUnary(tools.unary(message, torch.zeros(1000))))

    verdicts = [send(step) for step in range(SMALL_PER_EDGE + 1)]
    assert verdicts == [Verdict.ACCEPTED] * SMALL_PER_EDGE + [Verdict.BUSY]
    with handler.changed:
        handler.events.clear()  # lets the vectors go
    assert send(9) is Verdict.ACCEPTED


def test_buffers_are_used_again_but_never_while_read(tools: Any, handler: Any) -> None:
    contract = tools.contract(LARGE)
    stub = tools.stub(tools.server(handler, contract).address)

    def send(value: float) -> torch.Tensor:
        payload = bytes(encode(torch.full((LARGE,), value), Format.FLOAT32))
        message = tools.header(tools.head(step=int(value)), contract)
        assert verdict(stub.Relay(tools.stream(message, payload))) is Verdict.ACCEPTED
        with handler.changed:
            (vector,) = handler.events[-1][2]
            handler.events.clear()
        return vector

    first = send(1.0)
    second = send(2.0)
    used = {first.data_ptr(), second.data_ptr()}
    assert len(used) == 2
    del second
    third = send(3.0)
    assert third.data_ptr() in used - {first.data_ptr()}
    assert bool((first == 1.0).all())


def test_kinds_do_not_share_buffers(tools: Any, handler: Any) -> None:
    contract = tools.contract()
    stub = tools.stub(tools.server(handler, contract).address)
    for kind in set(Kind) - PAIR_KINDS:
        message = tools.header(tools.head(kind=kind, metrics=("loss",)), contract)
        fmt, elements = contract.format_of(kind), contract.span(kind, 0).elements
        for _ in range(SMALL_PER_EDGE):
            response = stub.RelayUnary(tools.unary(message, torch.zeros(elements), fmt))
            assert verdict(response) is Verdict.ACCEPTED


@pytest.mark.parametrize("kind", sorted(PAIR_KINDS, key=lambda kind: kind.value))
def test_messages_of_pairs_have_a_call_of_their_own(tools: Any, handler: Any, kind: Kind) -> None:
    contract = tools.contract()
    stub = tools.stub(tools.server(handler, contract).address)
    message = tools.header(tools.head(kind=kind, exchange=1), contract)
    with pytest.raises(grpc.RpcError, match="send it in a call of Exchange"):
        stub.RelayUnary(tools.unary(message, torch.zeros(1000)))
    assert not handler.of("admit")


SUMS = torch.tensor([0.1, 3.0, 2.0, 1e300, 0.0, 1.0], dtype=torch.float64)


def test_takes_sums_of_metrics_as_doubles_whatever_models_are(tools: Any, handler: Any) -> None:
    contract = tools.contract(wire_format=Format.BFLOAT16)
    head = tools.head(kind=Kind.METRIC, metrics=("loss", "accuracy"))
    stub = tools.stub(tools.server(handler, contract).address)
    message = tools.header(head, contract, sections=2)
    response = stub.RelayUnary(tools.unary(message, SUMS, Format.FLOAT64))
    assert verdict(response) is Verdict.ACCEPTED
    ((got, vectors),) = handler.of("received")
    assert got == head
    assert torch.equal(torch.cat(vectors), SUMS)


def test_what_is_in_sums_may_be_refused_too(tools: Any, handler: Any) -> None:
    handler.judge_content = lambda _: Verdict.BAD_METRIC
    contract, head = tools.contract(), tools.head(kind=Kind.METRIC, metrics=("loss", "accuracy"))
    stub = tools.stub(tools.server(handler, contract).address)
    request = tools.unary(tools.header(head, contract, sections=2), SUMS, Format.FLOAT64)
    assert verdict(stub.RelayUnary(request)) is Verdict.BAD_METRIC
    assert handler.of("refused") == [(Verdict.BAD_METRIC, head)]
    assert not handler.of("broken")  # it came whole


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_sums_that_are_not_finite(tools: Any, handler: Any, bad: float) -> None:
    contract, head = tools.contract(), tools.head(kind=Kind.METRIC, metrics=("loss",))
    stub = tools.stub(tools.server(handler, contract).address)
    sums = torch.tensor([bad, 1.0, 1.0], dtype=torch.float64)
    response = stub.RelayUnary(tools.unary(tools.header(head, contract), sums, Format.FLOAT64))
    assert verdict(response) is Verdict.NOT_FINITE
    assert not handler.of("received")


def test_state_tells_what_is_known_of_the_swarm(tools: Any, handler: Any) -> None:
    stub = tools.stub(tools.server(handler, tools.contract()).address)
    assert not stub.GetState(pb.GetStateRequest()).HasField("swarm_metrics")
    handler.swarm = SwarmMean(40, 8, {"loss": Sum(3.0, 6.0, 8), "bleu": Sum(0.0, 0.0, 1)})
    got = stub.GetState(pb.GetStateRequest()).swarm_metrics
    assert (got.step, got.peers) == (40, 8)
    assert [(m.name, m.weight, m.peers) for m in got.metrics] == [("loss", 6, 8), ("bleu", 0, 1)]
    assert got.metrics[0].mean == 0.5
    assert math.isnan(got.metrics[1].mean)


# --- broken and malformed -------------------------------------------------------------------------


def test_a_stream_that_is_cut_off_is_broken_and_its_buffer_comes_back(
    tools: Any, handler: Any
) -> None:
    contract = tools.contract(LARGE)
    stub = tools.stub(tools.server(handler, contract).address)
    for step in range(1, LARGE_PER_EDGE + 2):  # one more than there are buffers
        head = tools.head(step=step)
        going = threading.Event()

        def requests(head: Head = head, going: threading.Event = going) -> Iterator[Any]:
            yield pb.RelayRequest(header=tools.header(head, contract))
            yield pb.RelayRequest(data=bytes(1 << 20))
            going.wait(20)

        call = stub.Relay.future(requests())
        handler.wait("admit", step)
        call.cancel()
        going.set()
        assert handler.wait("broken", step)[-1] == (head,)
    assert not handler.of("refused")
    assert not handler.of("received")


def test_malformed_input_is_an_invalid_argument(tools: Any, handler: Any) -> None:
    contract = tools.contract()
    stub = tools.stub(tools.server(handler, contract).address)
    good = list(tools.stream(tools.header(tools.head(), contract), bytes(4000), 1000))
    no_kind = tools.header(tools.head(), contract, kind=0)
    twice = pb.RelayRequest(header=tools.header(tools.head(), contract), data=b"x")
    streams = {
        "empty stream": [],
        "no header": good[1:],
        "no trailer": good[:-1],
        "header twice": [good[0], *good],
        "gap": [good[0], *good[2:]],
        "nothing": [good[0], pb.RelayRequest(), *good[1:]],
        "out of order": [good[0], good[2], good[1], *good[3:]],
        "two things in one": [twice, *good[1:]],
        "no kind": [pb.RelayRequest(header=no_kind), *good[1:]],
    }
    for name, requests in streams.items():
        code = status(lambda requests=requests: stub.Relay(iter(requests)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, name
    whole = tools.unary(tools.header(tools.head(), contract), torch.zeros(1000))
    for field in ("header", "trailer"):
        request = pb.RelayUnaryRequest()
        request.CopyFrom(whole)
        request.ClearField(field)
        code = status(lambda request=request: stub.RelayUnary(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(handler.of("broken")) == len(handler.of("admit"))
    assert not handler.of("received")
    assert verdict(stub.RelayUnary(whole)) is Verdict.ACCEPTED  # and it lives


def test_garbage_is_an_invalid_argument(tools: Any, handler: Any) -> None:
    channel = tools.channel(tools.server(handler, tools.contract()).address)
    stream = channel.stream_unary(f"/{wire.SERVICE}/Relay")
    unary = channel.unary_unary(f"/{wire.SERVICE}/RelayUnary")
    for garbage in (b"\xff", b"\x09garbage", bytes(range(256)), b"\x82\x01\xff\xff\xff\xff\x7f"):
        for call in (lambda g=garbage: stream(iter([g])), lambda g=garbage: unary(g)):
            assert status(call) is grpc.StatusCode.INVALID_ARGUMENT
    assert not handler.of("admit")


def test_a_request_beyond_the_limit_is_refused_by_grpc(tools: Any, handler: Any) -> None:
    contract = tools.contract(LARGE)
    stub = tools.stub(tools.server(handler, contract).address)
    payload = bytes(4 * LARGE)
    message = tools.header(tools.head(), contract)
    channel = grpc.insecure_channel(
        tools.server(handler, contract).address,
        options=[("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)],
    )
    with channel:
        whole = pb.RelayUnaryRequest(header=message, data=payload)
        call = channel.unary_unary(f"/{wire.SERVICE}/RelayUnary")
        code = status(lambda: call(whole.SerializeToString()))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert verdict(stub.Relay(tools.stream(message, payload))) is Verdict.ACCEPTED


def test_a_stream_that_stalls_is_cut_off_and_its_buffer_comes_back(
    tools: Any, handler: Any
) -> None:
    contract, ended = tools.contract(LARGE), threading.Event()
    stub = tools.stub(tools.server(handler, contract, stall_s=0.2).address)
    for step in range(1, LARGE_PER_EDGE + 2):  # one more than there are buffers
        message = tools.header(tools.head(step=step), contract)

        def requests(message: Any = message) -> Iterator[Any]:
            yield pb.RelayRequest(header=message)
            yield pb.RelayRequest(data=bytes(1000))
            ended.wait(20)

        assert status(lambda r=requests: stub.Relay(r())) is grpc.StatusCode.CANCELLED
        assert handler.wait("broken", step)[-1] == (tools.head(step=step),)
    ended.set()
    assert [denial for denial, _ in handler.of("denied")] == [Denial.STALLED] * step
    assert not handler.of("refused")


def test_a_header_larger_than_any_honest_one_is_malformed(tools: Any, handler: Any) -> None:
    """A million empty sections are two megabytes on the wire, and hundreds of them parsed."""
    contract = tools.contract()
    channel = tools.channel(tools.server(handler, contract).address)
    bomb = tools.header(tools.head(), contract)
    bomb.sections.extend([pb.Section()] * 500_000)
    unary = channel.unary_unary(f"/{wire.SERVICE}/RelayUnary")
    stream = channel.stream_unary(f"/{wire.SERVICE}/Relay")
    ours = wire.unary_bytes(bomb, 0, bytes(4000))
    theirs = pb.RelayUnaryRequest(data=bytes(4000), header=bomb).SerializeToString()
    first = pb.RelayRequest(header=bomb).SerializeToString()
    for call in (lambda: unary(ours), lambda: unary(theirs), lambda: stream(iter([first]))):
        assert status(call) is grpc.StatusCode.INVALID_ARGUMENT
    texts = [text for denial, text in handler.of("denied") if denial is Denial.MALFORMED]
    assert texts == ["more than 65536 bytes besides the payload; send less"] * 3
    assert not handler.of("admit")


def test_the_checksum_is_xxh3_with_seed_0(tools: Any, handler: Any) -> None:
    contract = tools.contract(2)
    stub = tools.stub(tools.server(handler, contract).address)
    data = b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    request = pb.RelayUnaryRequest(
        header=tools.header(tools.head(), contract),
        trailer=pb.Trailer(xxh3=0x28A0BA9C345D3723),
        data=data,
    )
    assert verdict(stub.RelayUnary(request)) is Verdict.ACCEPTED
    assert handler.of("received")[0][1][0].tolist() == [1.0, -2.0]
