"""How a run is doing, asked of its coordinator and shown."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import grpc
import rich.box
import rich.tree
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from coordinator.evaluations import evaluation_in
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from relayswarm.errors import JoinError
from relayswarm.net.address import split_address
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.sockets import open_channel
from relayswarm.peer.v1.peer_pb2 import SwarmMetrics

TIMEOUT_S = 5.0


def fetch(address: str, security: Security = PLAIN) -> pb.GetStatusResponse:
    """Ask the coordinator at HOST:PORT. Raises ConfigError if that is no address, JoinError if it
    cannot be reached."""
    split_address(address, "--coordinator")
    tokens = security.tokens()
    with open_channel(address, security) as channel:
        stub = pb_grpc.CoordinatorServiceStub(channel)
        try:
            return stub.GetStatus(
                pb.GetStatusRequest(),
                timeout=TIMEOUT_S,
                metadata=tokens.metadata() if tokens else None,
            )
        except grpc.RpcError as error:
            raise JoinError(_no_answer(address, security, error)) from error


def _no_answer(address: str, security: Security, error: grpc.RpcError) -> str:
    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return f"the coordinator at {address} refused: {error.details()}"
    doubt = ", its certificate and yours" if security.encrypts else ", and whether it wants TLS"
    return (
        f"--coordinator = {address!r}: no coordinator answers there "
        f"({error.code().name.lower()}); check the address, that it is running{doubt}"
    )


def to_json(status: pb.GetStatusResponse) -> str:
    """The status as one line of JSON; a number that is not finite becomes null."""
    return json.dumps(to_dict(status))


def to_dict(status: pb.GetStatusResponse) -> dict[str, Any]:
    """The status as JSON values."""
    epoch = status.epoch
    return {
        "run_id": status.run_id,
        "state": status.state,
        "needed": status.needed,
        "epoch": {"term": epoch.term, "number": epoch.number} if epoch.number else None,
        "reason": status.reason,
        "stop_step": status.stop_step or None,
        "swarm_metrics": _swarm_json(newest(status)),
        "members": [_member_json(member) for member in status.members],
        "trees": [
            [[edge.from_peer_id, edge.to_peer_id] for edge in tree.edges] for tree in status.trees
        ],
    }


def _member_json(member: pb.MemberStatus) -> dict[str, Any]:
    evaluation = evaluation_in(member)
    return {
        "peer": member.member.peer_id,
        "address": member.member.address,
        "metrics_address": member.metrics_address,
        "shard": member.shard,
        "step": member.step,
        "loss": member.loss if math.isfinite(member.loss) else None,
        "state": member.state,
        "models_counted": member.models_counted,
        "steps_per_s": member.steps_per_s if math.isfinite(member.steps_per_s) else None,
        "last_seen_s": round(member.last_seen_s, 3),
        "swarm_metrics": _swarm_json(_swarm_of(member)),
        "evaluation": evaluation.as_json() if evaluation else None,
    }


def newest(status: pb.GetStatusResponse) -> SwarmMetrics | None:
    """What is known of the swarm's metrics by whoever knows most: the latest, of most peers."""
    known = [swarm for swarm in map(_swarm_of, status.members) if swarm is not None]
    return max(known, key=lambda swarm: (swarm.step, swarm.peers), default=None)


def _swarm_of(member: pb.MemberStatus) -> SwarmMetrics | None:
    return member.swarm_metrics if member.HasField("swarm_metrics") else None


def _swarm_json(swarm: SwarmMetrics | None) -> dict[str, Any] | None:
    if swarm is None:
        return None
    return {
        "step": swarm.step,
        "peers": swarm.peers,
        "metrics": {m.name: m.mean if math.isfinite(m.mean) else None for m in swarm.metrics},
        "weights": {m.name: m.weight for m in swarm.metrics},
        "measured_by": {m.name: m.peers for m in swarm.metrics},
    }


WIDE = Console(width=1000, file=io.StringIO())
"""To find how wide a table is if nothing limits it."""


def show(status: pb.GetStatusResponse, console: Console | None = None) -> None:
    """Print a table of the members, and the trees."""
    console = console or Console()
    console.print(f"run [bold]{status.run_id}[/]: {status.state}, {_headcount(status)}")
    if status.epoch.number:
        epoch = status.epoch
        console.print(f"epoch {epoch.term}.{epoch.number}: {status.reason}")
    if status.members:
        # As wide as it is, also in a narrow terminal: an address is there to be copied.
        console.print(_table(status), soft_wrap=True)
    swarm = newest(status)
    if swarm is not None:
        console.print(_swarm_line(swarm), markup=False)
    for number, tree in enumerate(status.trees):
        title = "tree" if len(status.trees) == 1 else f"tree {'AB'[number]}"
        if tree.edges:
            console.print(title)
            console.print(_picture(tree))


def _headcount(status: pb.GetStatusResponse) -> str:
    here = sum(member.state != "finished" for member in status.members)
    end = f", ends before step {status.stop_step}" if status.stop_step else ""
    return f"{here} peers here, {status.needed} needed to start{end}"


def _swarm_line(swarm: SwarmMetrics) -> str:
    values = ", ".join(f"{m.name} {m.mean:.4g}" for m in swarm.metrics)
    return f"swarm at step {swarm.step}: {values} (mean of {swarm.peers} peers)"


def _table(status: pb.GetStatusResponse) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("peer", "shard", "step", "steps/s", "loss", "models", "state", "last seen"):
        is_text = name in ("peer", "state")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    table.add_column("address", no_wrap=True)
    for m in status.members:
        loss = f"{m.loss:.4g}" if math.isfinite(m.loss) else "-"
        table.add_row(
            m.member.peer_id,
            str(m.shard),
            str(m.step),
            f"{m.steps_per_s:.3g}" if m.steps_per_s > 0 else "-",
            loss,
            str(m.models_counted or "-"),
            m.state,
            f"{m.last_seen_s:.1f} s",
            m.member.address or "dials out only",
        )
    table.width = Measurement.get(WIDE, WIDE.options, table).maximum
    return table


def _picture(tree: pb.Tree) -> rich.tree.Tree:
    """The tree as text, hung up by the end of its first edge."""
    neighbours: dict[str, list[str]] = {}
    for edge in tree.edges:
        neighbours.setdefault(edge.from_peer_id, []).append(edge.to_peer_id)
        neighbours.setdefault(edge.to_peer_id, []).append(edge.from_peer_id)
    root = tree.edges[0].from_peer_id
    picture = rich.tree.Tree(root)
    pending = [(root, "", picture)]
    while pending:
        peer, parent, branch = pending.pop()
        pending += [(k, peer, branch.add(k)) for k in neighbours[peer] if k != parent]
    return picture
