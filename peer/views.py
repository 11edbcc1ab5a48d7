"""From a layout of the topology to the view that an algorithm gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coordinator.members import Elected, Reason
from coordinator.views import Layout, lay_out_tree
from peer.algorithms.core import Epoch, PeerId, View
from peer.hellos import Commit
from relayswarm.config import RunConfig

FIRST_TERM, FIRST_NUMBER = 1, 1  # of a simulated swarm's first epoch
FIRST_REASON = Reason.QUORUM.value


def views_of(layout: Layout, *, correct_lr: bool, elected: Elected | None = None) -> Iterable[View]:
    """The views of all members, as a coordinator would publish them: for an elected epoch, or
    else for a first one, of peers in their first life.

    Mixing weights are doubles, as on the wire. `correct_lr` hands out the tree's learning-rate
    factor.
    """
    members = dict.fromkeys(layout.members, 1)
    if elected:
        members = {member.peer_id: member.incarnation for member in elected.members}
    epoch = Epoch(*_age(elected), digest=layout.digest(members))
    step = elected.effective_step if elected else 0
    for me in layout.members:
        yield view_of(layout, me, members, epoch, step, correct_lr=correct_lr)


def view_of(
    layout: Layout,
    me: PeerId,
    members: Mapping[PeerId, int],
    epoch: Epoch,
    effective_step: int,
    *,
    correct_lr: bool,
) -> View:
    """One member's view of an epoch; `members` by incarnation, in visiting order."""
    return View(
        epoch=epoch,
        effective_step=effective_step,
        me=me,
        members=members,
        trees=layout.trees(me),
        neighbours=layout.neighbours(me),
        mixing={peer: float(weight) for peer, weight in layout.mixing(me).items()},
        lr_scale=layout.lr_factor if correct_lr else 1,
        diameter=layout.diameter,
        weights=layout.weights_by_peer(),
        weight_behind=layout.weight_behind(me),
    )


def committed_view(config: RunConfig, commit: Commit, me: PeerId) -> View:
    """A member's view of a tree that its root has committed."""
    members = {seat.peer: seat.incarnation for seat in commit.members}
    weights = {seat.peer: seat.weight for seat in commit.members}
    layout = lay_out_tree(config, [*members], commit.root, commit.tree, commit.links, weights)
    epoch = Epoch(*commit.age, digest=layout.digest(members))
    correct_lr = config.optimizer.relay_lr_correction
    return view_of(layout, me, members, epoch, commit.effective_step, correct_lr=correct_lr)


def _age(elected: Elected | None) -> tuple[int, int]:
    return (elected.term, elected.number) if elected else (FIRST_TERM, FIRST_NUMBER)


def topology_event(layout: Layout, elected: Elected | None = None) -> dict[str, Any]:
    """What a coordinator would announce of that epoch."""
    term, number = _age(elected)
    return {
        "event": "topology",
        "epoch": {"term": term, "number": number},
        "root": layout.root,
        "members": list(layout.members),
        "edges": [list(e) for e in dict.fromkeys(e for tree in layout.tree_edges for e in tree)],
        "trees": [[list(edge) for edge in tree] for tree in layout.tree_edges],
        "graph_edges": [list(edge) for edge in layout.graph_edges],
        "reason": elected.reason.value if elected else FIRST_REASON,
        "detail": "; ".join((elected.text if elected else FIRST_REASON, *layout.notes)),
        "notes": list(layout.notes),
        "effective_step": elected.effective_step if elected else 0,
        "diameter": layout.diameter,
        "lr_factor": str(layout.lr_factor),
    }


def peer_ids(count: int) -> list[PeerId]:
    """The ids that a run's first peers get."""
    return [f"peer-{k}" for k in range(count)]
