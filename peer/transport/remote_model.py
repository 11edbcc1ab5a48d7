"""A model that came from another peer, the pieces it is put together from, and its file."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_64

from peer.codec import Format, is_finite
from peer.model_files import fingerprint_text
from peer.transport.wire import FORMAT_OF, Chunk, MalformedError, parse_response
from relayswarm import __version__
from relayswarm.errors import ConfigError
from relayswarm.peer.v1 import peer_pb2 as pb


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A peer's model as it was after `step` steps; `vector` has shape (d,)."""

    run_id: str
    peer_id: str
    step: int
    fingerprint: int
    vector: Tensor
    tensors: tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes, in the vector's order

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name; they share the vector's memory."""
        tensors, start = {}, 0
        for name, shape in self.tensors:
            stop = start + math.prod(shape)
            tensors[name] = self.vector[start:stop].view(shape)
            start = stop
        return tensors


def save_model(model: RemoteModel, path: Path) -> None:
    """Write a safetensors file, with what is known of the model as metadata; whole or not at all.

    Raises ConfigError if it cannot be written.
    """
    metadata = {
        "format": "pt",
        "step": str(model.step),
        "run_id": model.run_id,
        "peer_id": model.peer_id,
        "model_fingerprint": fingerprint_text(model.fingerprint),
        "relayswarm_version": __version__,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(model.state_dict(), temporary, metadata)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        problem = f"cannot be written ({error})"
        remedy = "name a file in a folder that exists"
        raise ConfigError("--output", str(path), problem, remedy) from error


@dataclass(frozen=True, slots=True)
class Expected:
    """What a newcomer knows of the model that it asks for, and holds the donor's header against
    before any memory is taken for it."""

    fingerprint: int
    elements: int  # d
    dtype: torch.dtype  # in which it has to be finite
    last_step: int  # of the run

    def check(self, header: pb.ModelHeader, elements: int) -> None:
        """Raise MalformedError for a model that is not of this run."""
        if header.model_fingerprint != self.fingerprint:
            raise MalformedError(
                f"model_fingerprint = {header.model_fingerprint}: this peer's is "
                f"{self.fingerprint}; start both with the same task and version"
            )
        if elements != self.elements:
            raise MalformedError(f"{elements} elements: this peer's model has {self.elements}")
        if header.step > self.last_step:
            raise MalformedError(f"step = {header.step}: the run has {self.last_step}")


class DamagedError(Exception):
    """What came is not what the peer's snapshot holds; worth another try from the start."""


class Download:
    """What has come of one snapshot. Memory grows with what came, not with what was announced; a
    newcomer says what it expects, and takes nothing else."""

    def __init__(self, expected: Expected | None = None) -> None:
        self._expected = expected
        self._header: pb.ModelHeader | None = None
        self._payload = bytearray()
        self._xxh3 = xxh3_64()
        self.complete = False

    @property
    def offset(self) -> int:
        """The first byte that has not come."""
        return len(self._payload)

    @property
    def snapshot_id(self) -> int:
        """Which snapshot to go on with; 0 for a new one."""
        return 0 if self._header is None else self._header.snapshot_id

    def take(self, response: bytes) -> None:
        """One serialized response. Raises MalformedError, or DamagedError if it does not fit."""
        part = parse_response(response)
        if isinstance(part, Chunk):
            self._append(part)
        elif part.HasField("header"):
            self._begin(part.header)
        else:
            self._end(part.trailer)

    def model(self) -> RemoteModel:
        """The model, once complete."""
        assert self._header is not None
        return RemoteModel(
            run_id=self._header.run_id,
            peer_id=self._header.peer_id,
            step=self._header.step,
            fingerprint=self._header.model_fingerprint,
            vector=self._vector(),
            tensors=tuple((spec.name, tuple(spec.shape)) for spec in self._header.tensors),
        )

    def _vector(self) -> Tensor:
        assert self._header is not None
        dtype = FORMAT_OF[self._header.codec.format].dtype
        if not self._payload:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._payload, dtype=dtype)

    def _begin(self, header: pb.ModelHeader) -> None:
        if self._header is not None and header != self._header:
            raise DamagedError("another snapshot has the same id")
        elements = _check(header)
        if self._expected is not None:
            self._expected.check(header, elements)
        self._header = header

    def _append(self, chunk: Chunk) -> None:
        if self._header is None or chunk.offset != self.offset:
            raise MalformedError(f"offset = {chunk.offset}: expected {self.offset}")
        if self.offset + len(chunk.data) > self._header.payload_bytes:
            raise MalformedError("more bytes than announced")
        self._payload += chunk.data
        self._xxh3.update(chunk.data)

    def _end(self, trailer: pb.Trailer) -> None:
        if self._header is None or self.offset != self._header.payload_bytes:
            raise MalformedError("fewer bytes than announced")
        if trailer.xxh3 != self._xxh3.intdigest():
            raise DamagedError("the checksum is wrong")
        expected = self._expected
        if expected is not None and not is_finite(self._vector().to(expected.dtype)):
            raise MalformedError("the model holds NaN or infinity")
        self.complete = True


def _check(header: pb.ModelHeader) -> int:
    """The number of elements. Raises MalformedError for a header that contradicts itself."""
    fmt: Format | None = FORMAT_OF.get(header.codec.format)
    if fmt is None:
        raise MalformedError(f"codec.format = {header.codec.format}: unknown")
    if any(side >= 2**63 for spec in header.tensors for side in spec.shape):
        raise MalformedError("a tensor's shape is larger than there can be")
    elements = sum(math.prod(spec.shape) for spec in header.tensors)
    if elements * fmt.itemsize != header.payload_bytes:
        raise MalformedError("the tensors' shapes do not add up to the payload's length")
    if len({spec.name for spec in header.tensors}) != len(header.tensors):
        raise MalformedError("two tensors have the same name")
    return elements
