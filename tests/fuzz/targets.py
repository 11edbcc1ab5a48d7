"""What fuzzers feed: readers of bytes from outside, each as a function of one input.

A target says whether the reader took the input, and raises if it does anything but take it or
refuse it as it says it would.
`SEEDS` are sound inputs to begin from. Two drivers use them: `test_fuzz.py` in `make test`, and
`atheris_driver.py` in `make fuzz`.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from safetensors.torch import save
from torch import Tensor
from xxhash import xxh3_64_intdigest

from peer.algorithms.core import Epoch, Head, Kind, Verdict
from peer.codec import Format, encode
from peer.codec.edges import Lattice, LatticeSetting
from peer.codec.lattice import BITS, Decoder, Encoder, encoded_bytes
from peer.training import checkpoint
from peer.training.checkpoint import Checkpoint
from peer.transport import wire
from peer.transport.contract import Contract, PeerState, Snapshot
from peer.transport.intake import Intake
from peer.transport.remote_model import DamagedError, Download, Expected
from peer.transport.service import PeerService
from peer.transport.topology_watch import to_view
from peer.transport.visits import Visits
from peer.transport.wire import MalformedError
from relayswarm import config as run_config
from relayswarm.coordinator.v1 import coordinator_pb2
from relayswarm.errors import ConfigError
from relayswarm.net.gate import Gate
from relayswarm.peer.v1 import peer_pb2 as pb

ELEMENTS = 10
LONGEST = 4096  # bytes of an input

CONTRACTS = (
    Contract("run", 7, ELEMENTS, torch.float32),
    Contract("run", 7, ELEMENTS, torch.float64, trees=2, sections=2),
    Contract("run", 7, ELEMENTS, torch.float16),
    Contract("run", 7, ELEMENTS, torch.float32, lattice=LatticeSetting(), seed=3),
    Contract("run", 7, ELEMENTS, torch.float64, lattice=LatticeSetting(16, True), seed=3),
)


# --- messages: headers, chunks, trailers ----------------------------------------------------------


class Aborted(Exception):
    """How a call ends with a status."""


class Context:
    """Of a call without TLS."""

    def abort(self, code: object, text: str) -> None:
        assert len(text) < 2000, "words from outside, in full"
        raise Aborted(code, text)

    def auth_context(self) -> Mapping[str, Any]:
        return {}


class Handler:
    """A daemon that wants everything, and looks at what it gets."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self.admitted = self.ended = self.taken = 0

    def admit(self, head: Head) -> Verdict:  # noqa: ARG002
        self.admitted += 1
        return Verdict.ACCEPTED

    def received(self, head: Head, vectors: tuple[Tensor, ...]) -> Verdict:
        self.ended += 1
        self.taken += 1
        span = self._contract.span(head.kind, head.tree)
        assert span is not None
        assert len(vectors) in self._contract.sections_of(head.kind)
        for vector in vectors:
            assert vector.shape == (span.elements,)
            assert vector.dtype == self._contract.dtype_of(head.kind)
            assert bool(torch.isfinite(vector).all()), "would be averaged"
        return Verdict.ACCEPTED

    def lost(self, head: Head) -> None:  # noqa: ARG002
        self.ended += 1

    def broken(self, head: Head) -> None:  # noqa: ARG002
        self.ended += 1

    def refused(self, verdict: Verdict, head: Head) -> None:  # noqa: ARG002
        assert verdict is not Verdict.ACCEPTED
        self.ended += verdict in (Verdict.DECODE_FAILED, Verdict.BUSY, Verdict.DUPLICATE)

    def denied(self, denial: object, text: str) -> None: ...

    def bytes_in(self, count: int) -> None: ...

    def copy(self) -> Tensor:
        raise AssertionError("Relay takes no pair's message")

    def snapshot(self) -> Snapshot:
        raise AssertionError("nobody asked for the model")

    def state(self) -> PeerState:
        return PeerState("me", 1, Epoch(1, 2, 3), 4, "training")


def messages(data: bytes) -> bool:
    """Calls of Relay and RelayUnary: the contract and the call by the first byte, then requests,
    each after its length."""
    if not data:
        return False
    contract = CONTRACTS[data[0] % len(CONTRACTS)]
    handler = Handler(contract)
    intake = Intake(handler, contract)
    service = PeerService(intake, Visits(), Gate(None, handler.denied))
    if contract.lattice:
        call(service, [first_message(contract)])
        handler.taken = 0
    call(service, list(unpacked(data[1:])), stream=data[0] >= 128)
    assert handler.admitted <= handler.ended, "an admitted message went unreported"
    if not contract.lattice:  # whose last message is a key
        edges = [("you", kind, tree) for kind in Kind for tree in (0, 1)]
        assert not any(intake._pool.taken(edge) for edge in edges), "a buffer was kept"
    return handler.taken == 1


def call(service: PeerService, requests: list[bytes], *, stream: bool = False) -> None:
    context: Any = Context()
    try:
        if stream:
            service.relay(iter(requests), context)
        else:
            service.relay_unary(requests[0] if requests else b"", context)
    except Aborted:
        pass


def packed(requests: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack("<H", len(request)) + request for request in requests)


def unpacked(data: bytes) -> Iterator[bytes]:
    while len(data) >= 2:
        (size,) = struct.unpack_from("<H", data)
        yield data[2 : 2 + size]
        data = data[2 + size :]


def head_of(kind: Kind = Kind.RELAY, **changes: Any) -> Head:
    given = {"step": 2, "count": 1} | changes
    return Head("you", 1, Epoch(1, 2, 3), kind=kind, **given)


def payload_of(contract: Contract, head: Head, vector: Tensor, sections: int) -> tuple[Any, bytes]:
    span = contract.span(head.kind, head.tree)
    assert span is not None
    message = wire.header(head, contract, [span] * sections)
    fmt = contract.format_of(head.kind)
    return message, bytes(encode(vector[: span.elements], fmt)) * sections


def whole(contract: Contract, vector: Tensor, **head: Any) -> bytes:
    message, payload = payload_of(contract, head_of(**head), vector, contract.sections)
    return wire.unary_bytes(message, xxh3_64_intdigest(payload), payload)


@cache
def first_message(contract: Contract) -> bytes:
    """What makes a key."""
    return whole(contract, torch.arange(ELEMENTS, dtype=contract.dtype), step=1)


def streamed(contract: Contract, vector: Tensor, *, chunk: int, **head: Any) -> list[bytes]:
    message, payload = payload_of(contract, head_of(**head), vector, contract.sections)
    parts = range(0, len(payload), chunk)
    return [
        pb.RelayRequest(header=message).SerializeToString(),
        *(wire.chunk_bytes(start, payload[start : start + chunk]) for start in parts),
        pb.RelayRequest(trailer=pb.Trailer(xxh3=xxh3_64_intdigest(payload))).SerializeToString(),
    ]


def on_lattice(contract: Contract) -> bytes:
    assert contract.lattice is not None
    bits, is_rotated = contract.lattice.bits, contract.lattice.is_rotated
    lattice = Lattice(bits, 5, is_rotated, expected=(0.1,))
    span = contract.span(Kind.RELAY, 0)
    assert span is not None
    message = wire.header(head_of(), contract, [span], lattice=lattice)
    payload = bytes(lattice.encoder(0).encode(torch.arange(ELEMENTS, dtype=contract.dtype) + 0.05))
    return wire.unary_bytes(message, xxh3_64_intdigest(payload), payload)


def metric(contract: Contract) -> bytes:
    head = head_of(Kind.METRIC, metrics=("loss", "accuracy"))
    message, payload = payload_of(contract, head, torch.ones(3, dtype=torch.float64), 2)
    return wire.unary_bytes(message, xxh3_64_intdigest(payload), payload)


def message_seeds() -> Iterator[bytes]:
    for index, contract in enumerate(CONTRACTS):
        vector = torch.linspace(-1, 1, ELEMENTS, dtype=contract.dtype)
        unary, stream = bytes([index]), bytes([128 + (index - 128) % len(CONTRACTS)])
        yield unary + packed([whole(contract, vector)])
        yield unary + packed([metric(contract)])
        yield stream + packed(streamed(contract, vector, chunk=7))
        yield stream + packed(streamed(contract, vector, chunk=1000, tree=contract.trees - 1))
        if contract.lattice:
            yield unary + packed([on_lattice(contract)])


# --- the lattice ----------------------------------------------------------------------------------


def lattice(data: bytes) -> bool:
    """An encoded vector next to a key: bits and rotation by the first byte."""
    if not data:
        return False
    bits, is_rotated = BITS[data[0] % 2], data[0] >= 128
    elements = max(1, (len(data) - 13) // (bits // 8))
    source = data[1:].ljust(encoded_bytes(elements, bits), b"\0")[: encoded_bytes(elements, bits)]
    key = torch.linspace(-1, 1, elements)
    out = torch.full((elements,), math.nan)
    decoder = Decoder(bits, 5, key, is_rotated=is_rotated)
    if not decoder.decode(source, 0, out):
        return False
    assert bool(torch.isfinite(out).all())
    assert 0 <= decoder.distance < math.inf
    if not is_rotated:
        far = float(np.abs(out.numpy() - key.numpy()).max())
        assert far <= decoder.distance * (1 + 1e-5), "further than it says"
    return True


def lattice_seeds() -> Iterator[bytes]:
    for index, bits in enumerate(BITS):
        for is_rotated in (False, True):
            vector = torch.linspace(-1, 1, 24) + 0.01
            first = index + (128 if is_rotated else 0)
            encoded = Encoder(bits, 5, 0.05, is_rotated=is_rotated).encode(vector)
            yield bytes([first]) + bytes(encoded)


# --- configs and views ----------------------------------------------------------------------------


def config(data: bytes) -> bool:
    """The text of a run config."""
    try:
        found = run_config.parse(data.decode("utf-8", "replace"))
    except ConfigError:
        return False
    assert run_config.parse(found.to_toml()) == found
    return True


def config_seeds() -> Iterator[bytes]:
    yield run_config.parse("").to_toml().encode()
    yield (
        b'run_id = "a"\npeers = 2\n[algorithm]\nname = "swarmsgd"\noptions = { script = [["a", '
        b'"b", 3]] }\n[faults]\ndrop = 0.1\nslow = { a = 2 }\n[[faults.edge]]\nsender = "a"\n'
        b'receiver = "b"\n[[faults.crash]]\npeer = "a"\nat_s = 1.0\n[[faults.partition]]\n'
        b'start_s = 1\nend_s = 2\ngroup = ["a"]\n'
    )


def views(data: bytes) -> bool:
    """A view of the topology, as the coordinator sends it."""
    try:
        message = coordinator_pb2.View.FromString(data)
        view = to_view(message, "me", correct_lr=True)
    except (DecodeError, ValueError, ConfigError):
        return False
    assert view.me in view.members
    assert 1 <= float(view.lr_scale) < math.inf
    return True


def view_seeds() -> Iterator[bytes]:
    members = [
        coordinator_pb2.Member(peer_id=peer, incarnation=1, address="127.0.0.1:1")
        for peer in ("me", "you")
    ]
    neighbour = coordinator_pb2.TreeNeighbour(peer_id="you", behind=1)
    yield coordinator_pb2.View(
        epoch=pb.Epoch(term=1, number=2, digest=3),
        members=members,
        trees=[coordinator_pb2.Tree(neighbours=[neighbour])],
        neighbours=["you"],
        mixing=[coordinator_pb2.MixingWeight(peer_id="you", weight=0.5)],
        diameter=1,
        lr_factor="3/2",
        reason="quorum",
    ).SerializeToString()


# --- models and checkpoints -----------------------------------------------------------------------


def downloads(data: bytes) -> bool:
    """A donor's responses to a newcomer, each after its length."""
    download = Download(Expected(7, ELEMENTS, torch.float32, last_step=100))
    try:
        for response in unpacked(data):
            download.take(response)
            assert download.offset <= 8 * ELEMENTS, "more than the model"
    except (MalformedError, DamagedError):
        return False
    if not download.complete:
        return False
    model = download.model()
    assert model.vector.shape == (ELEMENTS,)
    assert bool(torch.isfinite(model.vector).all())
    assert sum(t.numel() for t in model.state_dict().values()) == ELEMENTS
    return True


def download_seeds() -> Iterator[bytes]:
    payload = bytes(encode(torch.linspace(-1, 1, ELEMENTS), Format.FLOAT32))
    header = pb.ModelHeader(
        snapshot_id=5,
        run_id="run",
        peer_id="you",
        step=3,
        codec=pb.Codec(format=pb.FORMAT_F32),
        payload_bytes=len(payload),
        model_fingerprint=7,
        tensors=[pb.TensorSpec(name="w", shape=[2, 4]), pb.TensorSpec(name="b", shape=[2])],
    )
    trailer = pb.Trailer(xxh3=xxh3_64_intdigest(payload))
    yield packed(
        [
            pb.ReadModelResponse(header=header).SerializeToString(),
            wire.chunk_bytes(0, payload[:16]),
            wire.chunk_bytes(16, payload[16:]),
            pb.ReadModelResponse(trailer=trailer).SerializeToString(),
        ]
    )


_folder = tempfile.TemporaryDirectory(
    prefix="relayswarm-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
)


def checkpoints(data: bytes) -> bool:
    """A checkpoint file; or, behind a 1, the JSON of its header, with a right checksum over it."""
    directory = Path(_folder.name)
    file = directory / "checkpoint-00000001.safetensors"
    if data[:1] == b"\1":
        text = data[1:].decode("utf-8", "replace")
        tensors = {"vector": torch.zeros(2)}
        metadata = {"relayswarm": text, "sha256": checkpoint._checksum(tensors, text)}
        data = save(tensors, metadata)
    file.write_bytes(data)
    try:
        found = checkpoint.load_latest(directory)
        assert found is not None
        assert found.step >= 0
        found.require("run", "peer-0", 7)
    except ConfigError:
        return False
    return True


def checkpoint_seeds() -> Iterator[bytes]:
    sound = Checkpoint("run", "peer-0", 4, 7, {"vector": torch.ones(2)}, {"optimizer": "sgd"})
    with tempfile.TemporaryDirectory() as folder:
        yield checkpoint.save(Path(folder), sound).read_bytes()
    header = {"format": 1, "run_id": "run", "peer": "peer-0", "step": 4, "fingerprint": 7}
    yield b"\1" + json.dumps({**header, "values": {}}).encode()


def config_words() -> Iterator[str]:
    """Of run configs: sections, fields, and values."""
    for name, field in run_config.RunConfig.model_fields.items():
        yield name
        yield from getattr(field.annotation, "model_fields", ())
    yield from ("true", "false", "nan", "inf", "1e400", "0x7f", "1979-05-27", "[[faults.edge]]")


WORDS: dict[str, list[str]] = {"config": list(config_words())}

TARGETS: dict[str, Callable[[bytes], bool]] = {
    "messages": messages,
    "lattice": lattice,
    "config": config,
    "views": views,
    "downloads": downloads,
    "checkpoints": checkpoints,
}

SEEDS: dict[str, list[bytes]] = {
    "messages": list(message_seeds()),
    "lattice": list(lattice_seeds()),
    "config": list(config_seeds()),
    "views": list(view_seeds()),
    "downloads": list(download_seeds()),
    "checkpoints": list(checkpoint_seeds()),
}
