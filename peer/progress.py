"""Follows a run by its events: what a live display shows, and what a report is made from.

What belongs here: the meaning of events. They are JSON objects as peers and the coordinator write
them, whether they came through a pipe or straight from the simulator. No clock, no output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from peer.algorithms.core import peer_order
from peer.outcome import Happening, Lost, Metrics, PeerOutcome, RunOutcome, newest

if TYPE_CHECKING:
    from torch import Tensor

    from relayswarm.config import RunConfig

Event: TypeAlias = Mapping[str, Any]

SWARM_FIELDS = ("step", "peers", "metrics", "weights", "measured_by")


@dataclass
class PeerProgress:
    """What is known of one peer so far."""

    id: str
    state: str = "starting"
    step: int = 0  # steps done
    loss: float | None = None
    models_counted: int = 0
    swarm_size: int = 0
    bytes_sent: int = 0
    losses: list[tuple[int, float | None]] = field(default_factory=list)
    missed: list[tuple[int, int]] = field(default_factory=list)
    evaluations: list[tuple[int, Metrics]] = field(default_factory=list)
    swarm: Event | None = None  # what it knows of the swarm's metrics
    finished: Event | None = None  # its last words, if it had the chance
    exited: Event | None = None  # it ended before its time

    @property
    def ended(self) -> bool:
        return self.finished is not None or self.exited is not None

    def outcome(self, model: Mapping[str, Tensor] | None) -> PeerOutcome:
        """The report of a peer that finished."""
        assert self.finished is not None
        last = self.finished
        return PeerOutcome(
            id=self.id,
            steps=last["steps"],
            metrics=last["metrics"],
            messages_sent=last.get("messages_sent", 0),
            messages_retried=last.get("messages_retried", 0),
            messages_expected=last.get("messages_expected", 0),
            messages_missed=last.get("messages_missed", 0),
            messages_timed_out=last.get("messages_timed_out", 0),
            waited_s=last.get("waited_s", 0.0),
            local_steps=last.get("local_steps", 0),
            bytes_sent=last.get("bytes_sent", self.bytes_sent),
            shard=last.get("shard"),
            shard_digest=last.get("shard_digest", ""),
            weight=last.get("weight", 1.0),
            notes=tuple(last.get("notes", ())),
            losses=tuple(self.losses),
            missed=tuple(self.missed),
            evaluations=tuple(self.evaluations),
            swarm_metrics=self.swarm,
            privacy=last.get("privacy"),
            model=model,
        )


class Progress:
    """What is known of a run so far. Feed it every event in the order of arrival."""

    def __init__(self, config: RunConfig, expected: Sequence[str]) -> None:
        """`expected` are the peers that the run begins with."""
        self.config = config
        self.expected = tuple(expected)
        self.peers = {peer: PeerProgress(peer) for peer in expected}
        self.topologies: list[Event] = []
        self.happenings: list[Happening] = []
        self.present: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """How many each peer will do."""
        return self.config.steps

    @property
    def in_order(self) -> list[PeerProgress]:
        """All peers seen or expected, in visiting order."""
        return [self.peers[peer] for peer in sorted(self.peers, key=peer_order)]

    @property
    def topology(self) -> Event | None:
        """The present topology; None while the run waits for peers."""
        return self.topologies[-1] if self.topologies else None

    @property
    def missing(self) -> list[str]:
        """Peers that have yet to come before the run can start."""
        return [peer for peer in self.expected if peer not in self.present]

    @property
    def steps_done(self) -> int:
        """Steps that all living peers have done."""
        living = [p.step for p in self.peers.values() if p.exited is None]
        return min(living, default=0)

    @property
    def swarm(self) -> Event | None:
        """The newest that any peer knows of the swarm's metrics, of most peers."""
        return newest(peer.swarm for peer in self.peers.values())

    def observe(self, event: Event, seconds: float = 0.0) -> None:
        """Take in one event, so long after the run began; kinds that are not known here change
        nothing."""
        if event["event"] in _TOLD:
            text = _TOLD[event["event"]](event)
            peer = event.get("peer", "")
            self.happenings.append(Happening(round(seconds, 3), event["event"], peer, text))
        if event["event"] == "topology":
            self.topologies.append(event)
        elif event["event"] == "waiting" and "members" in event:
            self.present = tuple(event["members"])
        elif "peer" in event:
            self._observe_peer(event)

    def _observe_peer(self, event: Event) -> None:
        peer = self.peers.setdefault(event["peer"], PeerProgress(event["peer"]))
        match event["event"]:
            case "peer_started":
                peer.state, peer.exited = "waiting", None
            case "waiting":
                peer.state = "waiting"
            case "state":
                peer.state = event["state"]
            case "step":
                _step(peer, event)
            case "evaluation":
                peer.evaluations.append((event["step"], event["metrics"]))
            case "swarm_metrics":
                peer.swarm = {key: event[key] for key in SWARM_FIELDS}
            case "peer_finished":
                peer.finished, peer.state = event, "finished"
                peer.step = event["steps"]
            case "peer_exited":
                peer.exited = event
                peer.state = f"exited ({event['exit_code']})"

    def outcome(
        self, wall_seconds: float, models: Mapping[str, Mapping[str, Tensor]]
    ) -> RunOutcome:
        """The run as it ended; `models` are the final models of finished peers, by peer."""
        finished = [peer for peer in self.in_order if peer.finished]
        return RunOutcome(
            config=self.config,
            peers=tuple(peer.outcome(models.get(peer.id)) for peer in finished),
            topologies=tuple(self.topologies),
            wall_seconds=wall_seconds,
            lost=tuple(_lost(peer) for peer in self.in_order if not peer.finished),
            happenings=tuple(self.happenings),
        )


def _step(peer: PeerProgress, event: Event) -> None:
    peer.state = "training"
    peer.step = event["step"] + 1
    peer.loss = event["loss"]
    peer.models_counted, peer.swarm_size = event["models_counted"], event["swarm_size"]
    peer.bytes_sent = event["bytes_sent"]
    peer.losses.append((event["step"], event["loss"]))
    peer.missed.append((event["step"], event.get("missed", 0)))


def _lost(peer: PeerProgress) -> Lost:
    last: Event = peer.exited or {"exit_code": None, "stderr": ()}
    return Lost(peer.id, last["exit_code"], peer.step, tuple(last["stderr"]))


def _epoch(event: Event) -> str:
    count = len(event["members"])
    why = event.get("detail") or event["reason"]
    number, step = event["epoch"]["number"], event["effective_step"]
    return f"epoch {number} from step {step}, {count} peers: {why}"


def _exit(event: Event) -> str:
    code = event["exit_code"]
    ended = "ended before its time" if code is None else f"ended with exit code {code}"
    return ": ".join([ended, *event["stderr"][-1:]])


_TOLD: Mapping[str, Callable[[Event], str]] = {
    "topology": _epoch,
    "member_joined": lambda event: f"joined, shard {event['shard']}",
    "member_lost": lambda event: f"given up at step {event['step']}: {event['reason']}",
    "peer_started": lambda _: "started",
    "peer_finished": lambda event: f"finished after {event['steps']} steps",
    "peer_exited": _exit,
    "state": lambda event: event["state"],
    "tree_committed": lambda event: (
        f"tree without a coordinator from step {event['effective_step']}"
    ),
    "coordinator_exited": _exit,
}
"""What is kept of a run's time line, and in which words."""
