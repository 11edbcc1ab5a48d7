"""Who may join, under which id and with which shard of the data.

What belongs here: the rules of `Join` as functions of who is there. Nothing here changes anything.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from coordinator import reach
from coordinator.members import Join, Member, Refusal, Refused, Rules

MIN_VERSION, MAX_VERSION = 1, 1
"""Range of protocol versions that this coordinator speaks."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")
_WILDCARDS = {"0.0.0.0", "[::]", "*"}  # mean "all my addresses": nobody can connect to them


def refuse(
    join: Join,
    rules: Rules,
    living: Collection[Member],
    finished: Collection[str],
    fingerprint: int,
) -> Refused | None:
    """Why this peer may not join, or None if it may.

    `living` are members and candidates whose time is not up, an id perhaps among both: in two
    lives, when a peer has been restarted. `fingerprint` is the run's, or 0.
    """
    return (
        _version(join)
        or _run(join, rules)
        or _wire_format(join, rules)
        or _weight(join, rules)
        or reach.refuse(join, rules)
        or _fields(join)
        or _identity(join, rules, living, finished)
        or _address(join, living)
        or _model(join, fingerprint)
    )


def refuse_finished(rules: Rules) -> Refused:
    """The answer to everyone once the run is over."""
    text = f"run_id = {rules.run_id!r}: the run has finished; start another one to train on"
    return Refused(Refusal.FINISHED, text)


def refuse_late(peer_id: str, rules: Rules) -> Refused:
    """The answer to whoever comes, or comes back, when others have the common model already: a
    second one must not be made."""
    text = (
        f"peer_id = {peer_id!r}: too late for {rules.run_id!r}, whose common model others have by "
        "now; fetch it from one of them with `relayswarm pull`"
    )
    return Refused(Refusal.FINISHED, text)


def version(join: Join) -> int:
    """The highest protocol version that both speak."""
    return min(join.max_version, MAX_VERSION)


def _version(join: Join) -> Refused | None:
    if join.min_version <= MAX_VERSION and join.max_version >= MIN_VERSION:
        return None
    text = (
        f"protocol_version = {join.min_version}..{join.max_version}: the coordinator speaks "
        f"{MIN_VERSION}..{MAX_VERSION}; install the same release of relayswarm on both"
    )
    return Refused(Refusal.VERSION, text)


def _run(join: Join, rules: Rules) -> Refused | None:
    if join.run_id in ("", rules.run_id):
        return None
    text = (
        f"run_id = {join.run_id!r}: this coordinator serves the run {rules.run_id!r}; "
        "join that, or give the address of the coordinator of yours"
    )
    return Refused(Refusal.RUN, text)


def _wire_format(join: Join, rules: Rules) -> Refused | None:
    if rules.wire_format is None or rules.wire_format in join.formats:
        return None
    text = (
        f"transport.wire_format = {rules.wire_format!r}: this peer knows only "
        f"{', '.join(sorted(join.formats))}; install the same release of relayswarm on both, or "
        "start the run with one of these"
    )
    return Refused(Refusal.WIRE_FORMAT, text)


def _weight(join: Join, rules: Rules) -> Refused | None:
    least, largest = rules.weights or (1.0, 1.0)
    if join.weight == 0 or least <= join.weight <= largest:
        return None
    text = f"weight = {join.weight}: not a weight; give a number from {least:g} to {largest:g}"
    if rules.weights is None:
        text = f"weight = {join.weight}: in this run all peers weigh the same; leave it out"
    return Refused(Refusal.WEIGHT, text)


def _fields(join: Join) -> Refused | None:
    if join.peer_id and not _ID.fullmatch(join.peer_id):
        text = (
            f"peer_id = {join.peer_id!r}: not a valid id; use up to 63 letters, digits, "
            "'.', '_' and '-', the first a letter or digit"
        )
        return Refused(Refusal.BAD_ID, text)
    if join.incarnation < 1:
        text = f"incarnation = {join.incarnation}: not above 0; use e.g. the time of the start"
        return Refused(Refusal.BAD_ID, text)
    if not join.address and (join.dial_only or not join.fingerprint):
        return None  # a candidate may not serve yet
    problem = _address_problem(join.address)
    if problem:
        text = f"advertised_address = {join.address!r}: {problem}; give HOST:PORT of this peer"
        return Refused(Refusal.BAD_ADDRESS, text)
    return None


def _address_problem(address: str) -> str:
    match = _ADDRESS.fullmatch(address)
    if not match or not 0 < int(match["port"]) < 65536:
        return "not an address that others can reach it at"
    if match["host"] in _WILDCARDS:
        return "a wildcard, to which nobody can connect"
    return ""


def _identity(
    join: Join, rules: Rules, living: Collection[Member], finished: Collection[str]
) -> Refused | None:
    if join.peer_id in finished:
        text = f"peer_id = {join.peer_id!r}: has done all steps of this run; start another run"
        return Refused(Refusal.FINISHED, text)
    lives = [member for member in living if member.peer_id == join.peer_id]
    if not lives:
        if len(living) < rules.max_members:
            return None
        text = f"the swarm is full: {len(living)} peers; wait until one leaves"
        return Refused(Refusal.FULL, text)
    other = max(lives, key=lambda life: life.incarnation)
    if other.incarnation < join.incarnation or _same_life(join, other):
        return None
    text = (
        f"peer_id = {join.peer_id!r}: taken by a peer at {other.address or 'no address yet'} that "
        "started later; choose another id, or leave it out to get a free one"
    )
    return Refused(Refusal.ID_TAKEN, text)


def _same_life(join: Join, other: Member) -> bool:
    return other.incarnation == join.incarnation and other.address in ("", join.address)


def _address(join: Join, living: Collection[Member]) -> Refused | None:
    for other in living:
        if join.address and other.address == join.address and other.peer_id != join.peer_id:
            text = (
                f"advertised_address = {join.address!r}: taken by {other.peer_id!r}; if that was "
                f"this peer before a restart, join as {other.peer_id!r} or wait until its lease is "
                "over, else give the address at which others reach this peer"
            )
            return Refused(Refusal.ADDRESS_TAKEN, text)
    return None


def _model(join: Join, fingerprint: int) -> Refused | None:
    if not join.fingerprint or not fingerprint or join.fingerprint == fingerprint:
        return None
    text = (
        f"model_fingerprint = {join.fingerprint:#018x}: the run's is {fingerprint:#018x}, so the "
    )
    if have_one_layout(join.fingerprint, fingerprint):
        text += (
            "models are alike but for the values of their frozen parameters; load the same base "
            "model on all peers, or name in share.exclude what may differ"
        )
    else:
        text += (
            "models differ in names, shapes or types of parameters; use the same task, options and "
            "code on all peers"
        )
    return Refused(Refusal.FINGERPRINT, text)


def have_one_layout(one: int, other: int) -> bool:
    """Whether two fingerprints that differ are of models with one layout, the upper halves: what is
    frozen has other values then (`JoinRequest.model_fingerprint`)."""
    return (one ^ other) >> 32 == 0


def free_id(taken: Collection[str]) -> str:
    """The free `peer-K` with the lowest K."""
    number = 0
    while f"peer-{number}" in taken:
        number += 1
    return f"peer-{number}"


def choose_shard(peer_id: str, shards: int, others: Iterable[Member]) -> tuple[int, str]:
    """A shard for a peer, and a note where it is not a shard of its own.

    The peer's number if its id ends in one and that shard is free, else the lowest free shard,
    else (more peers than shards) its number modulo `shards`, shared.
    """
    return shard_for(
        peer_id, shards, {member.shard: member.peer_id for member in others if member.weight}
    )


def shard_for(peer_id: str, shards: int, held: Mapping[int, str]) -> tuple[int, str]:
    """The same, where `held` says who has which shard."""
    digits = re.search(r"(\d+)$", peer_id)
    number = int(digits[1]) if digits else None
    if number is not None and number < shards and number not in held:
        return number, ""
    free = next((shard for shard in range(shards) if shard not in held), None)
    if free is not None:
        return free, ""
    shared = (number if number is not None else len(held)) % shards
    return shared, f"all {shards} shards are taken: shard {shared} is also that of {held[shared]}"
