"""When a member is given up, and why: leases, silence, and what neighbours say.

A lease ends `lease_s` after the last renewal. A member is given up sooner when it has missed two
renewals and all its neighbours, in the tree or else in the graph, that have reported since call it
unreachable. Silence alone may be a pause and a neighbour's word alone a broken link; both together
are a dead peer, and the swarm need not stand still for a whole lease.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from coordinator.members import Member, Reason, Rules


def due(
    member: Member,
    members: Mapping[str, Member],
    neighbourhoods: Iterable[Collection[str]],
    rules: Rules,
) -> tuple[float, Reason]:
    """When this member is given up if nothing more is heard of it, and why.

    `neighbourhoods` are the groups whose word counts against it, any of which will do.
    """
    silent_at = member.last_seen + rules.silent_s
    if silent_at < member.expires and _called_unreachable(member, members, neighbourhoods):
        return silent_at, Reason.UNREACHABLE
    return member.expires, Reason.LEASE_EXPIRED


def _called_unreachable(
    member: Member, members: Mapping[str, Member], neighbourhoods: Iterable[Collection[str]]
) -> bool:
    for group in neighbourhoods:
        voters = [members[k] for k in group if k in members]
        voters = [k for k in voters if k.last_seen > member.last_seen]
        if voters and all(member.peer_id in k.unreachable for k in voters):
            return True
    return False
