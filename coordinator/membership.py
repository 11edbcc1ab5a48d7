"""Membership as a state machine: leases, liveness, and when to elect.

    handle(event, now) -> decisions          next_deadline() -> when to be woken with a Tick

Every time is given in seconds of one monotonic clock; nothing here reads a clock, waits or locks.
Joins, renewals and departures are taken in at once; leases end and epochs are elected on a `Tick`,
so that several changes at one moment give one epoch. The rules, each in one place below:

- A run starts when `needed` peers are members. From then on every change of membership elects a new
  epoch at once, whatever the number of peers, down to one. When all are lost it waits again.
- A lease ends `lease_s` after the last renewal. A member is given up sooner when it has missed two
  renewals and all its neighbours, in the tree or else in the graph, that have reported since call
  it unreachable. Silence alone may be a pause and a neighbour's word alone a broken link; both
  together are a dead peer, and the swarm need not stand still for a whole lease.
- A member that leaves because it has done all steps changes nothing for the others. Members that
  have done all steps but still serve are not elected into new epochs.
- Peers that join again, because the coordinator was away, say which epoch they train in. Then
  the run goes on with those that are back after one lease, and with a higher (term, number).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from coordinator import admission
from coordinator.members import (
    Admitted,
    Change,
    Decision,
    Elected,
    Event,
    GaveUp,
    Gone,
    Join,
    Leave,
    Member,
    Progress,
    Reason,
    Renew,
    Renewed,
    Rules,
    RunFinished,
    RunState,
    Tick,
    Unknown,
    Waiting,
    natural_order,
)

MARGIN_S = 0.5
"""From an election to the moment when the slowest peer has its view, generously."""

MAX_AGE = 2**62
"""Terms and numbers from peers at or above this are nonsense, and would overflow the wire."""


def effective_step(reports: Iterable[Progress], now: float) -> int:
    """The step at which all peers can still switch together to a new topology.

    max over peers of (step + ceil(rate * (now - at + MARGIN_S))) + 1, where a peer reported `step`
    at time `at`, and `rate` (steps per second) is the highest that any peer was seen going at:
    synchronous peers are equally fast. Too low, and fast peers switch late, losing the messages of
    a step or two; too high, and the swarm trains on in the old topology, in which a peer may be
    missing. A swarm that stands still, waiting for a dead peer, has rate 0: the very next step.
    """
    reports = list(reports)
    rate = max((r.rate for r in reports if r.rate is not None), default=0.0)
    return max(r.step + math.ceil(rate * (now - r.at + MARGIN_S)) for r in reports) + 1


class Membership:
    """Who is in the run, and in which epoch. See the module's text for the rules."""

    def __init__(
        self, rules: Rules, now: float, *, term: int, number: int = 0, fingerprint: int = 0
    ) -> None:
        """Start empty at time `now`; (term, number) is the epoch published last, or the first
        term with number 0, and `fingerprint` that of the run's model where it is known."""
        self.rules = rules
        self.state = RunState.WAITING
        self.term, self.number, self.fingerprint = term, number, fingerprint
        self.current: Elected | None = None
        self.members: dict[str, Member] = {}
        self.candidates: dict[str, Member] = {}
        self.finished: dict[str, Member] = {}
        self._neighbourhoods: Mapping[str, Collection[Collection[str]]] = {}
        self._changes: list[Change] = []
        self.settled = False  # something has happened that the next Tick must look at
        self._now = now
        self._start_deadline = now + rules.start_timeout_s
        self._gave_up = False
        self._restored_at: float | None = None
        self._announced: tuple[str, ...] | None = None

    @property
    def present(self) -> tuple[str, ...]:
        """Ids of the members, in visiting order."""
        return tuple(sorted(self.members, key=natural_order))

    def published(self, neighbourhoods: Mapping[str, Collection[Collection[str]]]) -> None:
        """Take note of who can tell whether a peer is reachable: for each member of the present
        epoch some groups (its neighbours in the trees, in the graph), any of which will do."""
        self._neighbourhoods = neighbourhoods

    def handle(self, event: Event, now: float) -> list[Decision]:
        """Take one event at time `now` and say what follows; the answer to a request is first."""
        self._now = now
        match event:
            case Join():
                return self._join(event, now)
            case Renew():
                return self._renew(event, now)
            case Leave():
                return self._leave(event)
            case Tick():
                return self._tick(event.overslept_s, now)

    def next_deadline(self) -> float | None:
        """When to be woken with a `Tick`; None when nothing is being waited for."""
        if not self.settled:
            return self._now
        times = [self._due(member)[0] for member in self.members.values()]
        times += [candidate.expires for candidate in self.candidates.values()]
        if self.state is RunState.WAITING:
            times += [] if self._gave_up else [self._start_deadline]
            if self._restored_at is not None:
                times.append(self._restored_at + self.rules.lease_s)
        return min(times, default=None)

    # --- requests --------------------------------------------------------------------------------

    def _join(self, join: Join, now: float) -> list[Decision]:
        everyone = (*self.members.values(), *self.candidates.values())
        living = [member for member in everyone if member.expires > now]
        fingerprint = self.fingerprint if self.members or self.number else 0
        if self.state is RunState.FINISHED:
            return [admission.refuse_finished(self.rules)]
        refused = admission.refuse(join, self.rules, living, self.finished, fingerprint)
        if refused:
            return [refused]
        return [self._admit(join, now, {m.peer_id: m for m in living})]

    def _admit(self, join: Join, now: float, living: Mapping[str, Member]) -> Admitted:
        peer_id = join.peer_id or admission.free_id({*living, *self.members, *self.finished})
        known = living.get(peer_id)
        others = [m for m in living.values() if m.peer_id != peer_id]
        shard, note = (
            (known.shard, "")
            if known
            else admission.choose_shard(peer_id, self.rules.shards, others)
        )
        candidate = not join.fingerprint
        kept_s = self.rules.reservation_s if candidate else self.rules.lease_s
        member = Member(
            peer_id=peer_id,
            incarnation=join.incarnation,
            address=join.address,
            metrics_address=join.metrics_address,
            fingerprint=join.fingerprint,
            shard=shard,
            progress=Progress.begin(min(join.step, self.rules.steps), now),
            expires=now + kept_s,
            last_seen=now,
        )
        again = False
        if candidate:
            self.candidates[peer_id] = member
        else:
            again = self._seat(member, join.known_age, now)
        self.settled = False
        donors = self._donors(peer_id, shard)
        return Admitted(member, admission.version(join), donors, candidate, again, note)

    def _seat(self, member: Member, known_age: tuple[int, int], now: float) -> bool:
        """Make it a member. True if this life of it was one already."""
        self.candidates.pop(member.peer_id, None)
        old = self.members.get(member.peer_id)
        self.members[member.peer_id] = member
        self.fingerprint = member.fingerprint
        if known_age > (0, 0):
            self._recall(known_age, now)
        if old and old.incarnation == member.incarnation:
            return True
        reason = Reason.RESTARTED if old else Reason.JOINED
        self._changes.append(Change(reason, member.peer_id))
        return False

    def _recall(self, known_age: tuple[int, int], now: float) -> None:
        """A peer remembers an epoch: never publish one that it would take for an older one."""
        if self.state is RunState.WAITING and self._restored_at is None:
            self._restored_at = now
        if max(known_age) < MAX_AGE:
            self.term, self.number = max((self.term, self.number), known_age)

    def _donors(self, newcomer: str, shard: int) -> tuple[Member, ...]:
        """Peers that have a model, another one first for each newcomer."""
        if self.state is not RunState.RUNNING or self.current is None:
            return ()
        elected = {(m.peer_id, m.incarnation) for m in self.current.members}
        donors = [
            m
            for m in (self.members[peer] for peer in self.present)
            if (m.peer_id, m.incarnation) in elected and m.peer_id != newcomer
        ]
        first = shard % len(donors) if donors else 0
        return tuple(donors[first:] + donors[:first])

    def _renew(self, renew: Renew, now: float) -> list[Decision]:
        member = self.members.get(renew.peer_id)
        if member is None or member.incarnation != renew.incarnation:
            return [self._unknown(renew.peer_id, renew.incarnation)]
        finishes = renew.state == RunState.FINISHED.value and not member.done
        step = min(renew.step, self.rules.steps)
        self.members[renew.peer_id] = replace(
            member,
            progress=member.progress.report(step, now, self.rules.renew_every_s / 2),
            expires=now + self.rules.lease_s,
            last_seen=now,
            state=member.state if member.done else renew.state,  # nobody takes that back
            loss=renew.loss,
            models_counted=renew.models_counted,
            steps_per_s=renew.steps_per_s,
            unreachable=renew.unreachable,
            swarm=renew.swarm,
        )
        if finishes or renew.unreachable or self._restored_at is not None:
            self.settled = False
        return [Renewed()]

    def _leave(self, leave: Leave) -> list[Decision]:
        kept = self.candidates.get(leave.peer_id)
        if kept and kept.incarnation == leave.incarnation:
            del self.candidates[leave.peer_id]
            return []
        member = self.members.get(leave.peer_id)
        if member is None or member.incarnation != leave.incarnation:
            return [self._unknown(leave.peer_id, leave.incarnation)]
        return [self._remove(member, None if leave.finished else Reason.LEFT)]

    def _unknown(self, peer_id: str, incarnation: int) -> Unknown:
        now_known = self.members.get(peer_id)
        if now_known:
            return Unknown(f"{peer_id!r} is a later life of that peer, not {incarnation}; join")
        return Unknown(f"{peer_id!r} is no member of {self.rules.run_id!r} (any more); join again")

    def _remove(self, member: Member, reason: Reason | None) -> Gone:
        del self.members[member.peer_id]
        self.settled = False
        if reason is None:
            self.finished[member.peer_id] = replace(member, state=RunState.FINISHED.value)
        else:
            self._changes.append(Change(reason, member.peer_id))
        return Gone(member, reason)

    # --- time ------------------------------------------------------------------------------------

    def _tick(self, overslept_s: float, now: float) -> list[Decision]:
        if overslept_s > self.rules.renew_every_s:
            self._extend(overslept_s + self.rules.renew_every_s)
        self.settled = True
        expired = [p for p, candidate in self.candidates.items() if candidate.expires <= now]
        for peer in expired:
            del self.candidates[peer]
        decisions: list[Decision] = list(self._drop_the_dead(now))
        if self.state is RunState.RUNNING:
            decisions += self._go_on(now)
        if self.state is RunState.WAITING:
            decisions += self._wait(now)
        return decisions

    def _extend(self, by_s: float) -> None:
        """Give members the time back that we slept through, and a moment to speak up again."""
        for table in (self.members, self.candidates):
            for peer, m in table.items():
                expires, last_seen = m.expires + by_s, m.last_seen + by_s
                table[peer] = replace(m, expires=expires, last_seen=last_seen)

    def _drop_the_dead(self, now: float) -> list[Gone]:
        gone: list[Gone] = []
        while dead := [(m, self._due(m)) for m in self.members.values() if self._due(m)[0] <= now]:
            gone += [self._remove(member, reason) for member, (_, reason) in dead]
        self.settled = True
        return gone

    def _due(self, member: Member) -> tuple[float, Reason]:
        """When this member is given up if nothing more is heard of it, and why."""
        silent_at = member.last_seen + self.rules.silent_s
        if silent_at < member.expires and self._called_unreachable(member):
            return silent_at, Reason.UNREACHABLE
        return member.expires, Reason.LEASE_EXPIRED

    def _called_unreachable(self, member: Member) -> bool:
        for group in self._neighbourhoods.get(member.peer_id, ()):
            voters = [self.members[k] for k in group if k in self.members]
            voters = [k for k in voters if k.last_seen > member.last_seen]
            if voters and all(member.peer_id in k.unreachable for k in voters):
                return True
        return False

    def _go_on(self, now: float) -> list[Decision]:
        if not self.members:
            self._changes.clear()
            if self.finished:
                self.state = RunState.FINISHED
                return [RunFinished()]
            self.state = RunState.WAITING
            self._start_deadline = now + self.rules.start_timeout_s
            return []
        return self._elect(now) if self._changes else []

    def _wait(self, now: float) -> list[Decision]:
        self._changes.clear()
        if not self.members:
            self._restored_at = None
        if self._may_start(now):
            restored = self._restored_at is not None
            self._changes = [Change(Reason.RESTORED if restored else Reason.QUORUM, "")]
            return self._elect(now, first=not restored)
        if now >= self._start_deadline and not self._gave_up:
            self._gave_up = True
            return [GaveUp(self.present, self.rules.needed)]
        if self.present != self._announced:
            self._announced = self.present
            return [Waiting(self.present, self.rules.needed)]
        return []

    def _may_start(self, now: float) -> bool:
        if self._restored_at is None:
            return len(self.members) >= self.rules.needed
        if now >= self._restored_at + self.rules.lease_s:
            return bool(self.members)
        paced = all(m.progress.rate is not None for m in self.members.values())
        return paced and len(self.members) >= self.rules.needed

    def _elect(self, now: float, first: bool = False) -> list[Decision]:
        changes, self._changes = tuple(self._changes), []
        members = tuple(m for p in self.present if not (m := self.members[p]).done)
        self.state, self._restored_at, self._announced = RunState.RUNNING, None, None
        if not members:
            return []  # all are done and only serve each other's last messages
        reports = [m.progress for m in members]
        step = max(r.step for r in reports) if first else effective_step(reports, now)
        self.number += 1
        self._neighbourhoods = {}
        self.current = Elected(self.term, self.number, step, members, changes)
        return [self.current]
