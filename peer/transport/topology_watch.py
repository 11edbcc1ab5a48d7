"""A peer's subscription to views of the topology.

What belongs here: from the coordinator's stream to callbacks, through breaks of the stream. A view
is handed out once, and never one that is older than the last.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Protocol, TypeAlias

import grpc

from peer.algorithms.core import Epoch, PeerId, View
from relayswarm import logs
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.errors import ConfigError
from relayswarm.net.address import split_address
from relayswarm.net.sparing import shortened

log = logging.getLogger("relayswarm.peer")

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 1.0  # pauses between tries double from one to the other

MAX_TREES = 2
_RATIO = re.compile(r"[0-9]{1,400}(/[1-9][0-9]{0,399})?")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Of a peer."""

OnView: TypeAlias = Callable[[View, dict[PeerId, str]], None]
"""Called with a view, and the address of each of its members."""
OnStop: TypeAlias = Callable[[int], None]
"""Called with the step before which the run ends; more than once."""
OnWaiting: TypeAlias = Callable[[int, int], None]
"""Called with how many peers are present, and needed."""
OnProgress: TypeAlias = Callable[[float], None]
"""Called with how many steps the swarm's peers have done in the mean; before a view, if that tells
it."""
OnNoTree: TypeAlias = Callable[[str], None]
"""Called with why the run cannot go on. Nothing is called after that."""
OnFailed: TypeAlias = Callable[[Exception], None]
"""Called with what a callback has raised. Nothing is called after that."""


class Stream(Protocol):
    """What gRPC gives for a call that is answered by a stream."""

    def __iter__(self) -> Iterator[pb.WatchTopologyResponse]: ...
    def cancel(self) -> bool: ...


class TopologyWatch:
    """One subscription to views, which outlives its streams."""

    def __init__(
        self,
        open_stream: Callable[[], Stream],
        me: PeerId,
        *,
        seen: Epoch,
        correct_lr: bool,
        on_view: OnView,
        on_waiting: OnWaiting,
        on_no_tree: OnNoTree,
        on_failed: OnFailed,
        on_stop: OnStop = lambda _: None,
        on_progress: OnProgress = lambda _: None,
    ) -> None:
        """Hand views after the epoch `seen` to the callbacks. `open_stream` asks the coordinator;
        `correct_lr` hands out the trees' learning-rate factor."""
        self._open_stream, self._me = open_stream, me
        self._seen, self._correct_lr = seen, correct_lr
        self._on_view, self._on_waiting, self._on_no_tree = on_view, on_waiting, on_no_tree
        self._on_failed, self._on_stop, self._on_progress = on_failed, on_stop, on_progress
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> Epoch:
        """No callback begins after this. Returns the epoch seen last."""
        self._ended.set()
        with self._guard:
            if self._stream:
                self._stream.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        return self._seen

    def _run(self) -> None:
        """The thread's top boundary. Without it a peer would train on, and hear of no view."""
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001
            self._on_failed(error)

    def _follow(self) -> None:
        pause_s = FIRST_RETRY_S
        while not self._ended.is_set():
            try:
                for response in self._open():
                    pause_s = FIRST_RETRY_S
                    self._take(response)
            except grpc.RpcError as error:
                # Even if another stream of ours is said to have taken over: it is one that we gave
                # up, and that came late.
                log.debug("watching the topology: %s", words(error))
            self._ended.wait(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)

    def _open(self) -> Stream:
        stream = self._open_stream()
        with self._guard:
            self._stream = stream
        if self._ended.is_set():
            stream.cancel()
        return stream

    def _take(self, response: pb.WatchTopologyResponse) -> None:
        if self._ended.is_set():
            return
        if response.HasField("waiting"):
            self._on_waiting(response.waiting.present, response.waiting.needed)
        if response.no_tree:
            self._ended.set()
            self._on_no_tree(shortened(response.no_tree))
        if not response.HasField("view"):
            return
        try:
            view = to_view(response.view, self._me, correct_lr=self._correct_lr)
        except (ValueError, ConfigError) as error:
            log.warning("a view that cannot be is passed over: %s", shortened(str(error)))
            return
        if response.view.stop_step:
            self._on_stop(response.view.stop_step)
        if view.epoch.age <= self._seen.age:
            return  # told again after the stream was mended
        self._seen = view.epoch
        self._on_progress(response.view.progress)
        _log(view, shortened(response.view.reason))
        self._on_view(view, {member.peer_id: member.address for member in response.view.members})


def _log(view: View, reason: str) -> None:
    term, number = view.epoch.age
    logs.event(
        log,
        logging.INFO,
        "topology",
        f"epoch {term}.{number} from step {view.effective_step}: {reason}",
        epoch=f"{term}.{number}",
        effective_step=view.effective_step,
        members=len(view.members),
        neighbours=sorted({peer for tree in view.trees for peer in tree}),
        reason=reason,
    )


def to_view(message: pb.View, me: PeerId, *, correct_lr: bool = False) -> View:
    """A view from the wire, as algorithms know it; everything in visiting order.

    With `correct_lr` its `lr_scale` is the trees' exact learning-rate factor, else 1. Raises
    ValueError if it contradicts itself, or is not a view of `me`; ConfigError for no address.
    """
    _check(message, me)
    epoch = message.epoch
    return View(
        epoch=Epoch(epoch.term, epoch.number, epoch.digest),
        effective_step=message.effective_step,
        me=me,
        members={member.peer_id: member.incarnation for member in message.members},
        trees=tuple({k.peer_id: k.behind for k in tree.neighbours} for tree in message.trees),
        neighbours=tuple(message.neighbours),
        mixing={entry.peer_id: entry.weight for entry in message.mixing},
        lr_scale=Fraction(message.lr_factor) if correct_lr else 1,
        diameter=message.diameter,
        layout=message.layout,
        resumes=message.resumes,
        weights=dict(zip((m.peer_id for m in message.members), message.weights, strict=False)),
        weight_behind=tuple(
            {k.peer_id: k.weight for k in tree.neighbours}
            for tree in message.trees
            if message.weights
        ),
    )


def _check(message: pb.View, me: PeerId) -> None:
    """A peer must not stumble over what its coordinator says."""
    members = {member.peer_id for member in message.members}
    for member in message.members:
        if member.address:  # else it can only dial out
            split_address(member.address, f"address of {member.peer_id}")
    behind = [neighbour for tree in message.trees for neighbour in tree.neighbours]
    mixed = [entry.peer_id for entry in message.mixing]
    named = {me, *message.neighbours, *mixed, *(one.peer_id for one in behind)}
    if not all(map(ID.fullmatch, members)):
        raise ValueError("members: not all of them are ids of peers")
    if named - members or len(members) < len(message.members):
        raise ValueError(f"members = {sorted(members)}: not those that it names, or some twice")
    if len(message.trees) > MAX_TREES or any(not 0 < k.behind < len(members) for k in behind):
        raise ValueError("trees: more than there can be, or other counts than of members")
    if message.weights and len(message.weights) != len(members):
        raise ValueError("weights: not one for each member")
    if not all(
        0 <= weight < math.inf for weight in (*message.weights, *(k.weight for k in behind))
    ):
        raise ValueError("weights: not all of them are numbers of 0 or more")
    if not all(math.isfinite(entry.weight) for entry in message.mixing):
        raise ValueError("mixing: a weight is not finite")
    if not _RATIO.fullmatch(message.lr_factor):
        raise ValueError(f"lr_factor = {message.lr_factor!r}: not a ratio of numbers")
    if not 1 <= Fraction(message.lr_factor) <= 2 * len(members):  # 1 + a mean of delays in hops
        raise ValueError(f"lr_factor = {message.lr_factor!r}: not that of a tree of the members")


def words(error: grpc.RpcError) -> str:
    """The coordinator's words, or gRPC's."""
    return shortened(error.details() or error.code().name.lower())
