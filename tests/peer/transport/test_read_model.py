"""Reading a model over gRPC: whole, broken off, forgotten, damaged, refused."""

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors import safe_open
from xxhash import xxh3_64_intdigest

from peer.audit import Audit
from peer.transport.read_model import ReadModelError, read_model
from peer.transport.remote_model import (
    DamagedError,
    Download,
    Expected,
    RemoteModel,
    save_model,
)
from peer.transport.snapshots import READERS
from peer.transport.wire import SERVICE, MalformedError, chunk_bytes
from relayswarm import __version__
from relayswarm.errors import ConfigError, ExitCode
from relayswarm.net.gate import Denial
from relayswarm.peer.v1 import peer_pb2 as pb

SHAPES = (("conv.weight", (300, 1000)), ("scale", ()), ("none", (0, 7)), ("bias", (300_000,)))
ELEMENTS = sum(math.prod(shape) for _, shape in SHAPES)  # three chunks


@pytest.fixture
def handler(tools: Any) -> Any:
    return tools.Handler(model=torch.randn(ELEMENTS), tensors=SHAPES)


class FaultyPeer:
    """A peer whose read answers are spoiled: `answers[i]` is what happens in the i-th call."""

    def __init__(self, peer: Any, answers: list[Any]) -> None:
        self.requests: list[pb.ReadModelRequest] = []
        self._peer = peer
        self._answers = iter(answers)

    def read_model(
        self, request: pb.ReadModelRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        self.requests.append(request)
        answer = next(self._answers, None)
        responses = (r.SerializeToString() for r in self._peer.ReadModel(request))
        return responses if answer is None else answer(responses, context)

    def get_state(self, request: pb.GetStateRequest, _: grpc.ServicerContext) -> Any:
        return self._peer.GetState(request)

    @contextmanager
    def serving(self) -> Iterator[str]:
        server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        methods = {
            "ReadModel": grpc.unary_stream_rpc_method_handler(
                self.read_model, request_deserializer=pb.ReadModelRequest.FromString
            ),
            "GetState": grpc.unary_unary_rpc_method_handler(
                self.get_state,
                request_deserializer=pb.GetStateRequest.FromString,
                response_serializer=pb.GetStateResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def breaks_after(count: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Any:
    def answer(responses: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in range(count):
            yield next(responses)
        context.abort(code, "out of order")

    return answer


def damaged(responses: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    for response in responses:
        message = pb.ReadModelResponse.FromString(response)
        if message.HasField("trailer"):
            message.trailer.xxh3 ^= 1
        yield message.SerializeToString()


def without_trailer(responses: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    yield from list(responses)[:-1]


@pytest.fixture
def faulty(tools: Any, handler: Any) -> Any:
    """Starts a faulty peer in front of a right one."""

    def start(*answers: Any) -> FaultyPeer:
        stub = tools.stub(tools.server(handler, tools.contract(ELEMENTS)).address)
        return FaultyPeer(stub, list(answers))

    return start


def test_reads_a_model(tools: Any, handler: Any) -> None:
    server = tools.server(handler, tools.contract(ELEMENTS))
    model = read_model(server.address)
    assert torch.equal(model.vector, handler.model)
    assert (model.run_id, model.peer_id, model.step) == ("run", "receiver", 17)
    assert model.fingerprint == 0xFEED_FACE_CAFE_BEEF
    assert model.tensors == SHAPES
    state = model.state_dict()
    assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == list(SHAPES)
    assert torch.equal(torch.cat([t.flatten() for t in state.values()]), handler.model)


def test_reads_float64_and_empty_models(tools: Any) -> None:
    for model in (torch.randn(5, dtype=torch.float64), torch.zeros(0)):
        handler = tools.Handler(model=model, tensors=(("w", tuple(model.shape)),))
        server = tools.server(handler, tools.contract(len(model), dtype=model.dtype))
        got = read_model(server.address).vector
        assert torch.equal(got, model)
        assert got.dtype == model.dtype


def test_a_foreign_reader_gets_plain_protobuf(tools: Any, handler: Any) -> None:
    stub = tools.stub(tools.server(handler, tools.contract(ELEMENTS)).address)
    first, *chunks, last = stub.ReadModel(pb.ReadModelRequest(run_id="run"))
    assert first.header.payload_bytes == 4 * ELEMENTS
    assert [chunk.offset for chunk in chunks] == [0, 1 << 20, 2 << 20]
    assert max(len(chunk.data) for chunk in chunks) == 1 << 20
    payload = b"".join(chunk.data for chunk in chunks)
    assert payload == bytes(handler.model.numpy())
    assert last.trailer.xxh3 == xxh3_64_intdigest(payload)


def test_a_snapshot_does_not_change_while_training_goes_on(tools: Any, handler: Any) -> None:
    stub = tools.stub(tools.server(handler, tools.contract(ELEMENTS)).address)
    before = handler.model.clone()
    first, *rest = stub.ReadModel(pb.ReadModelRequest(run_id="run"))
    handler.model += 1.0
    again = pb.ReadModelRequest(run_id="run", snapshot_id=first.header.snapshot_id)
    assert list(stub.ReadModel(again)) == [first, *rest]
    assert b"".join(part.data for part in rest) == bytes(before.numpy())
    assert len(handler.of("snapshot")) == 1


def test_any_offset_of_a_snapshot_can_be_asked_for(tools: Any, handler: Any) -> None:
    stub = tools.stub(tools.server(handler, tools.contract(ELEMENTS)).address)
    whole = list(stub.ReadModel(pb.ReadModelRequest(run_id="run")))
    id = whole[0].header.snapshot_id
    payload = bytes(handler.model.numpy())
    for offset in (1, 999_999, len(payload) - 1, len(payload)):
        request = pb.ReadModelRequest(run_id="run", snapshot_id=id, offset=offset)
        header, *chunks, trailer = stub.ReadModel(request)
        assert header == whole[0]
        assert b"".join(chunk.data for chunk in chunks) == payload[offset:]
        assert trailer == whole[-1]


def test_the_audit_of_a_read_says_which_bytes_left(
    tools: Any, handler: Any, tmp_path: Path
) -> None:
    audit = Audit(tmp_path / "audit.jsonl", "sha256")
    server = tools.server(handler, tools.contract(ELEMENTS), ledger=audit)
    stub, payload = tools.stub(server.address), bytes(handler.model.numpy())
    id = next(stub.ReadModel(pb.ReadModelRequest(run_id="run"))).header.snapshot_id
    starts = (0, 1 << 20, len(payload) - 5, len(payload))
    for start in starts:
        list(stub.ReadModel(pb.ReadModelRequest(run_id="run", snapshot_id=id, offset=start)))
    server.stop(0.0)
    audit.close()
    records = [json.loads(line) for line in audit.path.read_text().splitlines()]
    sent = [(r["offset"], r["bytes"], r["payload"]) for r in records if r["event"] == "sent"]
    left = [(start, payload[start:]) for start in starts[:-1]]
    wanted = [(start, len(part), hashlib.sha256(part).hexdigest()) for start, part in left]
    assert set(sent) == set(wanted)
    assert {r["offset"] for r in records if r["event"] == "begun"} == {0, 1 << 20}


@pytest.mark.parametrize("responses", [0, 1, 2, 3, 4])
def test_goes_on_where_a_read_broke_off(faulty: Any, handler: Any, responses: int) -> None:
    peer = faulty(breaks_after(responses), breaks_after(1))
    with peer.serving() as address:
        assert torch.equal(read_model(address).vector, handler.model)
    chunks = max(responses - 1, 0)
    assert [request.offset for request in peer.requests] == [
        0,
        *[min(chunks << 20, 4 * ELEMENTS)] * 2,
    ]
    assert len({r.snapshot_id for r in peer.requests if r.snapshot_id}) == 1


def test_a_peer_that_is_busy_or_away_is_asked_again(faulty: Any, handler: Any) -> None:
    codes = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    peer = faulty(*(breaks_after(0, code) for code in codes))
    with peer.serving() as address:
        assert torch.equal(read_model(address).vector, handler.model)
    assert len(peer.requests) == 3


def test_a_forgotten_snapshot_is_begun_anew(faulty: Any, handler: Any) -> None:
    peer = faulty(breaks_after(2), breaks_after(0, grpc.StatusCode.NOT_FOUND))
    with peer.serving() as address:
        assert torch.equal(read_model(address).vector, handler.model)
    assert [bool(r.snapshot_id) for r in peer.requests] == [False, True, False]
    assert peer.requests[-1].offset == 0


def test_a_damaged_model_is_read_again_but_not_for_ever(faulty: Any, handler: Any) -> None:
    peer = faulty(damaged)
    with peer.serving() as address:
        assert torch.equal(read_model(address).vector, handler.model)
    peer = faulty(*[damaged] * 9)
    with peer.serving() as address, pytest.raises(ReadModelError, match="checksum"):
        read_model(address)
    assert len(peer.requests) == 4


def test_nonsense_is_one_clear_error(faulty: Any) -> None:
    with (
        faulty(without_trailer).serving() as address,
        pytest.raises(ReadModelError, match=f"{address} sends nonsense: .*trailer"),
    ):
        read_model(address)


def test_the_server_refuses_other_runs_and_forgotten_snapshots(tools: Any, handler: Any) -> None:
    stub = tools.stub(tools.server(handler, tools.contract(ELEMENTS)).address)
    beyond = 4 * ELEMENTS + 1
    for request, code in (
        (pb.ReadModelRequest(run_id="walk"), grpc.StatusCode.FAILED_PRECONDITION),
        (pb.ReadModelRequest(run_id="run", snapshot_id=1 << 63), grpc.StatusCode.NOT_FOUND),
        (pb.ReadModelRequest(run_id="run", offset=beyond), grpc.StatusCode.OUT_OF_RANGE),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ReadModel(request))
        assert caught.value.code() is code
    denials = [denial for denial, _ in handler.of("denied")]
    assert denials == [Denial.RUN, Denial.FORGOTTEN, Denial.MALFORMED]


def test_too_many_readers_are_told_to_come_back(tools: Any, handler: Any) -> None:
    """Readers that stopped reading hold their snapshots; training and messages are not held up."""
    handler.model, handler.tensors = torch.zeros(10_000_000), (("w", (10_000_000,)),)
    stub = tools.stub(tools.server(handler, tools.contract(10_000_000)).address)
    stalled = [stub.ReadModel(pb.ReadModelRequest(run_id="run")) for _ in range(READERS)]
    for call in stalled:
        assert next(call).HasField("header")
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.ReadModel(pb.ReadModelRequest(run_id="run")))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [denial for denial, _ in handler.of("denied")] == [Denial.BUSY]
    for call in stalled:
        call.cancel()
    assert stub.GetState(pb.GetStateRequest()).step == 9


def test_another_run_is_one_clear_error(tools: Any, handler: Any) -> None:
    address = tools.server(handler, tools.contract(ELEMENTS)).address
    with pytest.raises(ReadModelError, match="trains 'run'") as caught:
        read_model(address, run_id="walk")
    assert caught.value.exit_code == ExitCode.COULD_NOT_JOIN


def test_nobody_there_is_one_clear_error() -> None:
    with pytest.raises(ReadModelError, match=r"127\.0\.0\.1:1 gave no model \(UNAVAILABLE"):
        read_model("127.0.0.1:1", patience_s=0.2)


def test_an_address_that_is_none_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="--peer = 'nowhere'"):
        read_model("nowhere")


# --- the pieces -----------------------------------------------------------------------------------


def header(**changes: Any) -> bytes:
    given: dict[str, Any] = {
        "snapshot_id": 5,
        "codec": pb.Codec(format=pb.FORMAT_F32),
        "payload_bytes": 8,
        "tensors": [pb.TensorSpec(name="w", shape=[2])],
    }
    return pb.ReadModelResponse(header=pb.ModelHeader(**(given | changes))).SerializeToString()


def trailer(xxh3: int) -> bytes:
    return pb.ReadModelResponse(trailer=pb.Trailer(xxh3=xxh3)).SerializeToString()


@pytest.mark.parametrize(
    ("responses", "says"),
    [
        ([chunk_bytes(0, bytes(8))], "offset"),
        ([trailer(0)], "fewer"),
        ([header(), chunk_bytes(4, bytes(4))], "expected 0"),
        ([header(), chunk_bytes(0, bytes(9))], "more bytes"),
        ([header(), chunk_bytes(0, bytes(4)), trailer(0)], "fewer"),
        ([header(codec=pb.Codec(format=pb.FORMAT_LATTICE))], "unknown"),
        ([header(payload_bytes=1 << 60)], "do not add up"),
        ([header(tensors=[pb.TensorSpec(name="w", shape=[1])] * 2)], "same name"),
        ([b"\xff"], "ReadModelResponse"),
    ],
)
def test_nonsense_is_malformed(responses: list[bytes], says: str) -> None:
    download = Download()
    *before, last = responses
    for response in before:
        download.take(response)
    with pytest.raises(MalformedError, match=says):
        download.take(last)


HUGE = [pb.TensorSpec(name="w", shape=[0, 2**64 - 1])]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_fingerprint": 8}, "fingerprint"),
        ({"tensors": [pb.TensorSpec(name="w", shape=[3])], "payload_bytes": 12}, "3 elements"),
        ({"step": 101}, "step = 101"),
        ({"tensors": HUGE, "payload_bytes": 0}, "larger than there can be"),
    ],
)
def test_a_newcomer_takes_no_memory_for_a_model_that_is_not_its_own(
    changes: dict[str, Any], says: str
) -> None:
    expected = Expected(fingerprint=7, elements=2, dtype=torch.float32, last_step=100)
    sound = {"model_fingerprint": 7, "step": 100}
    Download(expected).take(header(**sound))
    with pytest.raises(MalformedError, match=says):
        Download(expected).take(header(**(sound | changes)))


@pytest.mark.parametrize(
    ("bad", "dtype"),
    [(math.nan, torch.float32), (math.inf, torch.float32), (1e38, torch.float16)],
)
def test_a_newcomer_starts_from_finite_numbers(bad: float, dtype: torch.dtype) -> None:
    download = Download(Expected(fingerprint=7, elements=2, dtype=dtype, last_step=100))
    data = struct.pack("<2f", 1.0, bad)
    download.take(header(model_fingerprint=7))
    download.take(chunk_bytes(0, data))
    with pytest.raises(MalformedError, match="NaN"):
        download.take(trailer(xxh3_64_intdigest(data)))


def test_another_snapshot_under_the_same_id_is_noticed() -> None:
    download = Download()
    download.take(header())
    with pytest.raises(DamagedError, match="another snapshot"):
        download.take(header(step=3))


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def model() -> RemoteModel:
    return RemoteModel("run", "peer-3", 40, 7, torch.randn(ELEMENTS), SHAPES)


def test_saves_tensors_by_name_with_step_run_and_peer(model: RemoteModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"what was there before")
    save_model(model, path)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "step": "40",
            "run_id": "run",
            "peer_id": "peer-3",
            "model_fingerprint": f"{model.fingerprint:#018x}",
            "relayswarm_version": __version__,
        }
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in model.state_dict().items():
        assert torch.equal(saved.pop(name), tensor)
    assert not saved
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_one_clear_error(
    model: RemoteModel, tmp_path: Path
) -> None:
    for path in (tmp_path / "missing" / "model.safetensors", tmp_path):
        with pytest.raises(ConfigError, match=r"--output = .* cannot be written"):
            save_model(model, path)
    assert list(tmp_path.iterdir()) == []
