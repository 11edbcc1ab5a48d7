"""Between membership's values and the protobuf messages of the coordinator's wire contract."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from coordinator.evaluations import evaluation_in, evaluation_message
from coordinator.member_metrics import MAX_SAMPLES, Sample
from coordinator.members import (
    PLAIN_FORMATS,
    Elected,
    HealedTree,
    Join,
    Leave,
    Member,
    Renew,
    ResumePoint,
    SwarmMetric,
    SwarmMetrics,
    natural_order,
)
from coordinator.membership import Membership
from coordinator.views import Layout
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.peer.v1 import peer_pb2

MAX_TEXT = 64  # characters of an id, a state or a metric's name: longer ones are not honest
MAX_ADDRESS = 300
STATES = frozenset({"waiting", "training", "averaging", "finished"})
MAX_METRICS = 32  # of the swarm, that a peer may report
MAX_RESUME_POINTS = 64  # checkpoints that a peer may offer
MAX_UNREACHABLE = 64  # neighbours that a peer may report unreachable
MAX_MEMBERS, MAX_PAIRS = 1024, 8 * 1024  # of a tree that peers have committed


FORMATS: dict[int, str] = {
    peer_pb2.FORMAT_F64: "float64",
    peer_pb2.FORMAT_F32: "float32",
    peer_pb2.FORMAT_BF16: "bfloat16",
    peer_pb2.FORMAT_F16: "float16",
    peer_pb2.FORMAT_LATTICE: "lattice",
}
"""Wire formats by their names in the run config."""


def join_event(request: pb.JoinRequest) -> Join:
    """A request to join; what is too long to be honest is cut, and refused for what is left."""
    return Join(
        incarnation=request.incarnation,
        address=request.advertised_address[:MAX_ADDRESS],
        peer_id=request.peer_id[:MAX_TEXT],
        run_id=request.run_id[:MAX_TEXT],
        fingerprint=request.model_fingerprint,
        metrics_address=request.metrics_address[:MAX_ADDRESS],
        step=request.step,
        min_version=request.min_protocol_version,
        max_version=request.max_protocol_version,
        known_age=(request.epoch.term, request.epoch.number),
        formats=frozenset(FORMATS[f] for f in request.formats if f in FORMATS) or PLAIN_FORMATS,
        resume_points=frozenset(
            ResumePoint(point.step, point.layout)
            for point in request.resume_points[:MAX_RESUME_POINTS]
        ),
        tree=_tree(request.tree) if request.HasField("tree") else None,
        weight=request.weight if request.HasField("weight") else 1.0,
        dial_only=request.reachability == pb.REACHABILITY_DIAL_ONLY,
    )


def renew_event(request: pb.RenewLeaseRequest, metrics: tuple[Sample, ...] | None = None) -> Renew:
    """A renewal; what is too long to be honest is cut. `metrics`: those of it that were taken."""
    return Renew(
        peer_id=request.peer_id[:MAX_TEXT],
        incarnation=request.incarnation,
        step=request.step,
        loss=request.loss,
        state=request.state if request.state in STATES else "unknown",
        models_counted=request.models_counted,
        steps_per_s=request.steps_per_s,
        unreachable=frozenset(peer[:MAX_TEXT] for peer in request.unreachable[:MAX_UNREACHABLE]),
        swarm=_swarm(request.swarm_metrics) if request.HasField("swarm_metrics") else None,
        tree=_tree(request.tree) if request.HasField("tree") else None,
        metrics=metrics,
        evaluation=evaluation_in(request),
    )


def samples(snapshot: pb.MetricSnapshot) -> list[Sample]:
    """The metrics that a member tells, unchecked; one too many tells that there were more."""
    return [
        Sample(one.name[:MAX_TEXT], one.value, tuple(sorted(one.labels.items())))
        for one in snapshot.samples[: MAX_SAMPLES + 1]
    ]


def _tree(message: peer_pb2.CommittedTree) -> HealedTree | None:
    """A tree that peers have committed; None for what cannot be one. `lay_out_tree` checks it."""
    seats = message.members[:MAX_MEMBERS]
    peers = [seat.peer_id[:MAX_TEXT] for seat in seats]
    pairs = [*message.edges, *message.links]
    few = len(message.members) <= MAX_MEMBERS and len(pairs) <= MAX_PAIRS
    if not few or any(max(pair.a, pair.b) >= len(peers) or pair.a == pair.b for pair in pairs):
        return None

    def edges(pairs: Iterable[peer_pb2.MemberPair]) -> tuple[tuple[str, str], ...]:
        return tuple((peers[pair.a], peers[pair.b]) for pair in pairs)

    return HealedTree(
        age=(message.epoch.term, message.epoch.number),
        root=message.root[:MAX_TEXT],
        lives=frozenset((peers[k], seat.incarnation) for k, seat in enumerate(seats)),
        edges=edges(message.edges),
        links=edges(message.links),
    )


def _swarm(message: peer_pb2.SwarmMetrics) -> SwarmMetrics:
    metrics = tuple(
        SwarmMetric(one.name[:MAX_TEXT], one.mean, one.weight, one.peers)
        for one in message.metrics[:MAX_METRICS]
        if one.name.isprintable() and math.isfinite(one.weight)
    )
    return SwarmMetrics(message.step, message.peers, metrics)


def _swarm_message(swarm: SwarmMetrics) -> peer_pb2.SwarmMetrics:
    metrics = [
        peer_pb2.SwarmMetric(name=one.name, mean=one.mean, weight=one.weight, peers=one.peers)
        for one in swarm.metrics
    ]
    return peer_pb2.SwarmMetrics(step=swarm.step, peers=swarm.peers, metrics=metrics)


def leave_event(request: pb.LeaveRequest) -> Leave:
    """A goodbye."""
    return Leave(request.peer_id[:MAX_TEXT], request.incarnation, request.finished)


def epoch_message(elected: Elected, digest: int) -> peer_pb2.Epoch:
    """The epoch's identity."""
    return peer_pb2.Epoch(term=elected.term, number=elected.number, digest=digest)


def view_message(
    elected: Elected, layout: Layout, digest: int, me: str, stop_step: int = 0
) -> pb.View:
    """One member's view of an epoch."""
    trees = layout.trees(me)
    return pb.View(
        epoch=epoch_message(elected, digest),
        effective_step=elected.effective_step,
        members=[member_message(member) for member in elected.members],
        trees=[
            pb.Tree(neighbours=_behind(behind, weights), edges=_edges(edges))
            for behind, weights, edges in zip(
                trees,
                layout.weight_behind(me) or ({},) * len(trees),
                layout.tree_edges,
                strict=True,
            )
        ],
        neighbours=layout.neighbours(me),
        mixing=[
            pb.MixingWeight(peer_id=peer, weight=float(weight))
            for peer, weight in layout.mixing(me).items()
        ],
        diameter=layout.diameter,
        lr_factor=str(layout.lr_factor),
        reason=reason_text(elected, layout),
        layout=layout.place_digest,
        resumes=elected.resumes,
        weights=layout.peer_weights,
        stop_step=stop_step,
    )


def reason_text(elected: Elected, layout: Layout) -> str:
    """Why the epoch was published, and where the config could not be followed."""
    return "; ".join((elected.text, *layout.notes))


def tree_messages(layout: Layout) -> list[pb.Tree]:
    """All trees, nobody's in particular."""
    return [pb.Tree(edges=_edges(edges)) for edges in layout.tree_edges]


def status_message(member: Member, now: float) -> pb.MemberStatus:
    """How a member is doing."""
    return pb.MemberStatus(
        member=member_message(member),
        shard=member.shard,
        step=member.progress.step,
        loss=member.loss,
        state=member.state,
        models_counted=member.models_counted,
        steps_per_s=member.steps_per_s,
        last_seen_s=now - member.last_seen,
        metrics_address=member.metrics_address,
        swarm_metrics=_swarm_message(member.swarm) if member.swarm else None,
        evaluation=evaluation_message(member.evaluation) if member.evaluation else None,
    )


def all_statuses(membership: Membership, now: float) -> list[pb.MemberStatus]:
    """The members, and those that have left after their last step, in visiting order."""
    everyone = membership.finished | membership.members
    return [status_message(everyone[peer], now) for peer in sorted(everyone, key=natural_order)]


def member_message(member: Member) -> pb.Member:
    """Who it is, and where."""
    return pb.Member(peer_id=member.peer_id, incarnation=member.incarnation, address=member.address)


def _behind(behind: Mapping[str, int], weights: Mapping[str, float]) -> list[pb.TreeNeighbour]:
    return [
        pb.TreeNeighbour(peer_id=peer, behind=count, weight=weights.get(peer, 0.0))
        for peer, count in behind.items()
    ]


def _edges(edges: tuple[tuple[str, str], ...]) -> list[pb.Edge]:
    return [pb.Edge(from_peer_id=u, to_peer_id=v) for u, v in edges]
