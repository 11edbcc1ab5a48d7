"""Membership as a state machine: who is in the run, and when to elect.

    handle(event, now) -> decisions          next_deadline() -> when to be woken with a Tick

Every time is given in seconds of one monotonic clock; nothing here reads a clock, waits or locks.
Joins, renewals and departures are taken in at once; leases end and epochs are elected on a `Tick`,
so that several changes at one moment give one epoch. The rules, each in one place below:

- A run starts when `needed` peers are members. From then on every change of membership elects a new
  epoch at once, whatever the number of peers, down to one. When all are lost it waits again.
- A member that is given up (see `liveness`) has to join again.
- A member that leaves because it has done all steps changes nothing for the others. Members that
  have done all steps but still serve are not elected into new epochs.
- In a run that ends in one model (`common_model`) whoever has finished has it. From then on nobody
  is taken in, or elected, who was not in the epoch before: alone they would make another one.
- A run with `deterministic` that starts with peers that were stopped goes on from the last step of
  which all of them have a checkpoint in the layout that they form now: as if never stopped.
- Peers that join again, because the coordinator was away, say which epoch they train in. Then
  the run goes on with those that are back after one lease, and with a higher (term, number). Who
  came meanwhile and is no part of it has no model: it is to join again, when there are donors.
- Peers that have repaired their tree without a coordinator are elected into an epoch of the largest
  term plus one, in the tree that they have if nobody has come or gone since.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from coordinator import admission, liveness, reach
from coordinator.members import (
    FIRST_HEALED_NUMBER,
    LEAP,
    Admitted,
    Change,
    Decision,
    Elected,
    Event,
    GaveUp,
    Gone,
    HealedTree,
    Join,
    Leave,
    Member,
    NoTree,
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
from coordinator.progress import Progress, effective_step


class Membership:
    """Who is in the run, and in which epoch. See the module's text for the rules."""

    def __init__(
        self,
        rules: Rules,
        now: float,
        *,
        term: int,
        number: int = 0,
        fingerprint: int = 0,
        layout_of: Callable[[Mapping[str, float]], int] = lambda _: 0,
    ) -> None:
        """Start empty at time `now`; (term, number) is the epoch published last, or the first
        term with number 0, and `fingerprint` that of the run's model where it is known.
        `layout_of` is the digest of the layout that some peers, by what they weigh, would have."""
        self.rules = rules
        self._layout_of = layout_of
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
        self._no_tree_by: float | None = None  # then it is final that no tree can hold the members
        self._restored_at: float | None = None
        self._announced: tuple[str, ...] | None = None
        self._healed: HealedTree | None = None  # what peers have committed while we were away

    @property
    def present(self) -> tuple[str, ...]:
        """Ids of the members, in visiting order."""
        return tuple(sorted(self.members, key=natural_order))

    @property
    def progress(self) -> float:
        """How many steps peers have done, in the mean of all that are here or have finished."""
        steps = [member.progress.step for member in (self.finished | self.members).values()]
        return sum(steps) / len(steps) if steps else 0.0

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
        if self._no_tree_by is not None and not self._gave_up:
            times.append(self._no_tree_by)
        return min(times, default=None)

    # --- requests --------------------------------------------------------------------------------

    def _join(self, join: Join, now: float) -> list[Decision]:
        everyone = (*self.members.values(), *self.candidates.values())
        living = [member for member in everyone if member.expires > now]
        fingerprint = self.fingerprint if self.members or self.number else 0
        if self.state is RunState.FINISHED:
            return [admission.refuse_finished(self.rules)]
        refused = admission.refuse(join, self.rules, living, self.finished, fingerprint)
        refused = refused or reach.refuse_without_donor(join, self._models(join.peer_id))
        if not refused and self._is_too_late(join.peer_id, join.incarnation):
            refused = admission.refuse_late(join.peer_id, self.rules)
        if refused:
            return [refused]
        return [self._admit(join, now, {m.peer_id: m for m in living})]

    def _admit(self, join: Join, now: float, living: Mapping[str, Member]) -> Admitted:
        peer_id = join.peer_id or admission.free_id({*living, *self.members, *self.finished})
        shard, note = self._shard(peer_id, join, living)
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
            resume_points=join.resume_points,
            trains=join.known_age > (0, 0),
            weight=join.weight,
        )
        again = False
        if candidate:
            self.candidates[peer_id] = member
        else:
            again = self._seat(member, join.known_age, join.tree, now)
        self.settled = False
        donors = self._donors(peer_id, shard)
        return Admitted(member, admission.version(join), donors, candidate, again, note)

    def _is_too_late(self, peer_id: str, incarnation: int) -> bool:
        """Whether others have the common model by now, and this is no peer that gets it, too."""
        if not self.rules.common_model or self.current is None:
            return False
        ended = bool(self.finished) or any(member.done for member in self.members.values())
        lives = {(member.peer_id, member.incarnation) for member in self.current.members}
        return ended and (peer_id, incarnation) not in lives

    def _shard(self, peer_id: str, join: Join, living: Mapping[str, Member]) -> tuple[int, str]:
        known = living.get(peer_id)
        if known and bool(known.weight) == bool(join.weight):
            return known.shard, ""
        if not join.weight:
            return 0, ""  # nobody's: it has no data
        others = [m for m in living.values() if m.peer_id != peer_id]
        return admission.choose_shard(peer_id, self.rules.shards, others)

    def _seat(
        self, member: Member, known_age: tuple[int, int], tree: HealedTree | None, now: float
    ) -> bool:
        """Make it a member. True if this life of it was one already."""
        self.candidates.pop(member.peer_id, None)
        old = self.members.get(member.peer_id)
        self.members[member.peer_id] = member
        self.fingerprint = member.fingerprint
        if known_age > (0, 0):
            self._recall(known_age, tree, now)
        if old and old.incarnation == member.incarnation:
            return True
        reason = Reason.RESTARTED if old else Reason.JOINED
        self._changes.append(Change(reason, member.peer_id))
        return False

    def _recall(self, known_age: tuple[int, int], tree: HealedTree | None, now: float) -> None:
        """A peer remembers an epoch: never publish one that it would take for an older one."""
        if self.state is RunState.WAITING and self._restored_at is None:
            self._restored_at = now
        if known_age[0] > self.term + LEAP:
            return
        if known_age[1] >= FIRST_HEALED_NUMBER:  # what follows that number is a root's
            known_age = (known_age[0] + 1, 0)
        self.term, self.number = max((self.term, self.number), known_age)
        if tree and (self._healed is None or tree.age > self._healed.age):
            self._healed = tree

    def _models(self, newcomer: str) -> list[Member]:
        """Others that have a model."""
        if self.state is not RunState.RUNNING or self.current is None:
            return []
        elected = {(m.peer_id, m.incarnation) for m in self.current.members}
        return [
            m
            for m in (self.members[peer] for peer in self.present)
            if (m.peer_id, m.incarnation) in elected and m.peer_id != newcomer
        ]

    def _donors(self, newcomer: str, shard: int) -> tuple[Member, ...]:
        """Who can be asked for a model, another one first for each newcomer."""
        donors = [member for member in self._models(newcomer) if not member.dial_only]
        first = shard % len(donors) if donors else 0
        return tuple(donors[first:] + donors[:first])

    def _renew(self, renew: Renew, now: float) -> list[Decision]:
        member = self.members.get(renew.peer_id)
        if member is None or member.incarnation != renew.incarnation:
            return [self._unknown(renew.peer_id, renew.incarnation)]
        tree = renew.tree
        if tree and (self.term, self.number) < tree.age and tree.age[0] <= self.term + LEAP:
            self._recall(tree.age, tree, now)
            self._changes.append(Change(Reason.HEALED, ""))
            self.settled = False
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
            metrics=member.metrics if renew.metrics is None else renew.metrics,
            evaluation=renew.evaluation,
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
        groups = self._neighbourhoods.get(member.peer_id, ())
        return liveness.due(member, self.members, groups, self.rules)

    def _go_on(self, now: float) -> list[Decision]:
        if not self.members:
            self._no_tree_by = None
            self._changes.clear()
            if self.finished:
                self.state = RunState.FINISHED
                return [RunFinished()]
            self.state = RunState.WAITING
            self._start_deadline = now + self.rules.start_timeout_s
            return []
        return self._elect(now) if self._changes else []

    def _await_reachable(self, now: float, patience_s: float) -> list[Decision]:
        """There is no tree: somebody may come, or open a port, in time."""
        news = self._no_tree_by is None
        self._no_tree_by = self._no_tree_by or now + patience_s
        is_final = now >= self._no_tree_by
        if self._gave_up or not (news or is_final):
            return []
        self._gave_up = is_final
        return [NoTree(self.present, is_final)]

    def _wait(self, now: float) -> list[Decision]:
        self._changes.clear()
        if not self.members:
            self._restored_at = None
        if self._may_start(now):
            restored = self._restored_at is not None
            if restored:
                self._send_away_strangers()
            self._changes = [Change(Reason.RESTORED if restored else Reason.QUORUM, "")]
            return self._elect(now, first=not restored)
        if now >= self._start_deadline and not self._gave_up:
            self._gave_up = True
            return [GaveUp(self.present, self.rules.needed)]
        if self.present != self._announced:
            self._announced = self.present
            return [Waiting(self.present, self.rules.needed)]
        return []

    def _send_away_strangers(self) -> None:
        """They would begin with a fresh model where the others are. Their next renewal tells them
        to join again."""
        strangers = [peer for peer, member in self.members.items() if not member.trains]
        if len(strangers) < len(self.members):
            for peer in strangers:
                del self.members[peer]

    def _may_start(self, now: float) -> bool:
        if self._restored_at is None:
            return len(self.members) >= self.rules.needed
        if now >= self._restored_at + self.rules.lease_s:
            return bool(self.members)
        paced = all(m.progress.rate is not None for m in self.members.values())
        return paced and len(self.members) >= self.rules.needed

    def _elect(self, now: float, first: bool = False) -> list[Decision]:
        late = [m for m in self.members.values() if self._is_too_late(m.peer_id, m.incarnation)]
        for member in late:  # its next renewal tells it to join again
            del self.members[member.peer_id]
        members = tuple(m for p in self.present if not (m := self.members[p]).done)
        if reach.lacks_tree(members):
            return self._await_reachable(now, 0.0 if first else self.rules.start_timeout_s)
        changes, self._changes = tuple(self._changes), []
        self.state, self._restored_at, self._announced = RunState.RUNNING, None, None
        self._no_tree_by = None
        if not members:
            return []  # all are done and only serve each other's last messages
        reports = [m.progress for m in members]
        resumed = self._resumed_step(members) if first else None
        step = max(r.step for r in reports) if first else effective_step(reports, now)
        step = step if resumed is None else resumed
        self.number += 1
        self._neighbourhoods = {}
        tree, self._healed = self._healed, None
        if tree and tree.lives != {(m.peer_id, m.incarnation) for m in members}:
            tree = None
        resumes = resumed is not None
        self.current = Elected(self.term, self.number, step, members, changes, resumes, tree)
        return [self.current]

    def _resumed_step(self, members: Collection[Member]) -> int | None:
        """The last step from which all can go on together as if never stopped, if there is one."""
        points = frozenset.intersection(*(member.resume_points for member in members))
        if not self.rules.deterministic or not points:
            return None
        layout = self._layout_of({member.peer_id: member.weight for member in members})
        return max((point.step for point in points if point.layout == layout), default=None)
