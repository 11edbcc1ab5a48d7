"""Reads the live model of a peer: for `relayswarm pull`, and for newcomers.

The peer serves an immutable snapshot, so a read that breaks goes on where it stopped, with the
same bytes. Only if the peer has forgotten that snapshot does it begin anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from peer.algorithms.core import PeerId
from peer.transport.channel import open_channel
from peer.transport.remote_model import DamagedError, Download, Expected, RemoteModel
from peer.transport.wire import SERVICE, MalformedError
from relayswarm.errors import ExitCode, RelayswarmError
from relayswarm.net.address import split_address
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.sparing import shortened
from relayswarm.peer.v1 import peer_pb2 as pb

PATIENCE_S = 30.0
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 1.0
RESTARTS = 3

_FINAL = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
}


class ReadModelError(RelayswarmError):
    """The model could not be read; the message names the peer and says why."""

    exit_code = ExitCode.COULD_NOT_JOIN


def read_model(
    address: str,
    security: Security = PLAIN,
    *,
    peer_id: PeerId | None = None,
    run_id: str | None = None,
    expected: Expected | None = None,
    patience_s: float = PATIENCE_S,
) -> RemoteModel:
    """The model of the peer at HOST:PORT, of whatever run it trains unless `run_id` says which.
    With `peer_id` it must be that peer who serves there; with TLS its certificate has to say so.
    With `expected` it must be such a model, and hold finite numbers only.

    Gives up after `patience_s` without a byte. Raises ConfigError if that is no address and
    ReadModelError if there is no answer, a refusal, or nonsense.
    """
    split_address(address, "--peer")
    with _channel(address, security, peer_id) as channel:
        model = _Reader(channel, address, patience_s, expected).read(run_id)
    if peer_id is not None and model.peer_id != peer_id:
        told = model.peer_id[:64]
        raise ReadModelError(f"peer {address} is {told!r}, not {peer_id!r}; ask another")
    return model


class _Reader:
    """Goes on until the model is there, or hope is gone."""

    def __init__(
        self, channel: grpc.Channel, address: str, patience_s: float, expected: Expected | None
    ) -> None:
        self._address = address
        self._patience_s = patience_s
        self._deadline = time.monotonic() + patience_s
        self._backoff_s = FIRST_BACKOFF_S
        self._restarts = 0
        self._expected = expected
        self._download = Download(expected)
        self._get_state: grpc.UnaryUnaryMultiCallable[pb.GetStateRequest, pb.GetStateResponse] = (
            channel.unary_unary(
                f"/{SERVICE}/GetState",
                pb.GetStateRequest.SerializeToString,
                pb.GetStateResponse.FromString,
            )
        )
        self._read_model: grpc.UnaryStreamMultiCallable[pb.ReadModelRequest, bytes] = (
            channel.unary_stream(
                f"/{SERVICE}/ReadModel", pb.ReadModelRequest.SerializeToString, None
            )
        )

    def read(self, run_id: str | None) -> RemoteModel:
        """The whole model, in as many calls as it takes."""
        while run_id is None:
            with self._patience():
                state = self._get_state(pb.GetStateRequest(), timeout=self._patience_s)
                run_id = state.run_id
        while not self._download.complete:
            with self._patience():
                self._go_on(self._download, run_id)
        return self._download.model()

    def _go_on(self, download: Download, run_id: str) -> None:
        request = pb.ReadModelRequest(
            run_id=run_id, snapshot_id=download.snapshot_id, offset=download.offset
        )
        # The time-out is for a peer that hangs: a read that had got on is simply resumed.
        for response in self._read_model(request, timeout=self._patience_s):
            download.take(response)
            self._deadline = time.monotonic() + self._patience_s
            self._backoff_s = FIRST_BACKOFF_S
        if not download.complete:
            raise MalformedError("the stream ended without a trailer")

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Wait a little after a failure that may pass; raise ReadModelError for others."""
        try:
            yield
        except MalformedError as error:
            raise ReadModelError(f"peer {self._address} sends nonsense: {error}") from error
        except DamagedError as error:
            self._restart(str(error), error)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                self._restart(error.details(), error)
            elif error.code() in _FINAL or time.monotonic() > self._deadline:
                raise self._no_model(error.code().name, error.details()) from error
            else:
                self._wait()

    def _restart(self, why: str | None, error: Exception) -> None:
        self._restarts += 1
        if self._restarts > RESTARTS:
            raise self._no_model("gave up", why) from error
        self._download = Download(self._expected)

    def _no_model(self, code: str, details: str | None) -> ReadModelError:
        return ReadModelError(
            f"peer {self._address} gave no model ({code}: {shortened(details or '')}); "
            "check the address and that the peer is running"
        )

    def _wait(self) -> None:
        time.sleep(self._backoff_s)  # a remote peer cannot be watched, only asked again
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)


@contextmanager
def _channel(address: str, security: Security, peer_id: PeerId | None) -> Iterator[grpc.Channel]:
    channel = open_channel(address, security, peer_id)
    try:
        yield channel
    finally:
        channel.close()
