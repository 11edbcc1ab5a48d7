"""Who reaches whom, as far as peers go that can only dial out: two of these have no edge.

What belongs here: the rules that follow from it, as functions of members.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from coordinator.members import Join, Member, Refusal, Refused, Rules

REMEDY = (
    "open the port of one of them (--reachability both), or add a peer that all of them reach: one "
    "without data is enough, `relayswarm peer --role forward`"
)


def lacks_tree(members: Collection[Member]) -> bool:
    """Whether no tree can hold all of these."""
    return len(members) > 1 and all(member.dial_only for member in members)


def no_tree_text(peers: Iterable[str]) -> str:
    """What to tell people then."""
    return f"no tree of {' '.join(peers)}: all of them can only dial out; {REMEDY}"


def refuse(join: Join, rules: Rules) -> Refused | None:
    """Why this peer may not join if it can only dial out, or None if it may."""
    if join.dial_only and join.address:
        text = (
            f"advertised_address = {join.address!r}: given, but this peer says that it can only "
            "dial out; leave one of them away"
        )
        return Refused(Refusal.BAD_ADDRESS, text)
    if join.dial_only and rules.no_dial_only:
        text = f"reachability = 'dial-only': {rules.no_dial_only}, or open this peer's port"
        return Refused(Refusal.DIAL_ONLY, text)
    return None


def refuse_without_donor(join: Join, models: Collection[Member]) -> Refused | None:
    """A newcomer without a model of its own needs one of `models`, from whoever it can reach."""
    has_own = join.fingerprint or join.step or not join.weight  # one without data needs none
    if has_own or not models or any(not m.dial_only for m in models):
        return None
    who = " ".join(member.peer_id for member in models)
    text = (
        f"peer_id = {join.peer_id!r}: has no model, and nobody can be asked for one: {who} can "
        "only dial out; start it with --resume and a --state-dir that holds one"
    )
    return Refused(Refusal.NO_DONOR, text)
