"""The course of a step that all methods with steps share: train, send, wait, combine.

A concrete method says what to send, from whom to expect what, and how to combine it; this file
decides when. It is the home of the rules that concern a peer as a whole:

    R4  A peer that has finished its local steps and holds a label > t labels its own message with
        the largest such label: it jumps ahead, and its relayed sums stay valid.
    R8  A new epoch clears slots and last-used labels. What is under way to members still goes out:
        a neighbour may be at the step before, in the old epoch, and wait for it. Who is known to be
        unreachable stays so, in its present life.

A failure therefore costs at most three deadlines once, and never one a step. The rules that
concern a single edge are in `slots` and `sending`; what R8 says of epochs that are to come is in
`succession`. R9 (a finished peer lingers) is the driver's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from enum import Enum
from typing import ClassVar

from peer.algorithms.core import (
    Algorithm,
    Averaged,
    Coef,
    CoreState,
    Drop,
    DropReason,
    Effect,
    Epoch,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    NewView,
    PeerId,
    Received,
    Reg,
    Run,
    Send,
    SendDone,
    Tick,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.patience import Patience
from peer.algorithms.sending import UnderWay
from peer.algorithms.slots import DROP_REASONS, Edge, Inbox, Label, Slot, label_of
from peer.algorithms.succession import Succession


class Phase(Enum):
    IDLE = "waiting for a topology"
    TRAINING = "training"
    WAITING = "averaging"
    FINISHED = "finished"


class Unfit(Enum):
    """Why a method cannot go on in a topology, and pauses until another one comes."""

    NOT_A_POWER_OF_TWO = "the number of peers is not a power of two"


class Synchronous(Algorithm):
    """A method in which each step is local steps, then one or more rounds of messages."""

    kind: ClassVar[Kind]
    rounds: int = 1
    uses_late: ClassVar[bool] = False  # whether a message of an earlier step is of use

    def __init__(self, run: Run, *, lag: int = 0) -> None:
        self.run = run
        self.lag = lag  # 1 with overlap: a message of step t is used in step t+1
        self.phase = Phase.IDLE
        self.lr: Coef = 0
        self.view: View | None = None
        self._to_come = Succession()
        self._unreachable: set[PeerId] = set()  # so the transport said, and nothing came since
        self._step = run.start_step
        self._epoch_start = run.start_step
        self._round = 0
        self.patience = Patience(run.deadline_s, run.least_deadline_s, adapts=run.adapt_deadline)
        self._timed_out = 0  # messages of this step
        self._trained_at = 0.0
        self._waiting_since = 0.0
        self._taken: list[tuple[Label, Label | None]] = []  # in this step: label due, label used
        self._slots: dict[Edge, Slot] = {}
        self._due_slots: tuple[Label, list[tuple[Edge, Slot]]] | None = None
        self._under_way = UnderWay(lag)
        self._resumed: tuple[int, CoreState] | None = None  # start of the epoch, the method's state

    # --- what a method says ------------------------------------------------------------------

    @abstractmethod
    def expects(self, view: View, label: Label) -> tuple[Edge, ...]:
        """The edges over which a message with this label is due, in visiting order."""

    @abstractmethod
    def judge(self, view: View, head: Head) -> Verdict:
        """Does the message fit the topology: sender, tree, count?"""

    @abstractmethod
    def outgoing(self, view: View) -> list[Send]:
        """The messages of this step and round."""

    @abstractmethod
    def combine(self, view: View, inbox: Inbox) -> list[Effect]:
        """Form this round's combination from what came (None: lost)."""

    @abstractmethod
    def counted(self) -> Coef:
        """How many models were in the last combination."""

    def unfit(self, view: View) -> Unfit | None:  # noqa: ARG002
        """Why the method cannot train in this topology, if it cannot."""
        return None

    def left_behind(self, view: View, label: Label) -> bool:  # noqa: ARG002
        """Whether a sender can get to `label` only without this peer's messages (R4)."""
        return label[0] > self._step

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        """Start the method's state over (R8)."""
        return []

    def kept(self) -> CoreState:
        """The method's state at the beginning of a step, besides its registers."""
        return CoreState({})

    def restore(self, state: CoreState) -> None:
        """Go on from what `kept` gave, in place of starting over (R8)."""

    def before_training(self) -> list[Effect]:
        """Effects before each step's training, while the live register still holds x^(t)."""
        return []

    def lr_scale(self, view: View) -> Coef:  # noqa: ARG002
        return 1

    def patience_s(self, edge: Edge) -> float:  # noqa: ARG002
        """How long to wait for the message of an edge."""
        return self.patience.deadline_s

    def least_patience_s(self) -> float:
        """Of all edges that are waited for: asked at every event."""
        return self.patience.deadline_s

    def momentum(self) -> Reg | None:
        """A register that takes the place of the optimizer's momentum, if any."""
        return None

    def head(self, count: Coef, *, tree: int = 0, weight: Coef = 1) -> Head:
        """The header of a message of this step and round."""
        view = self._view
        return Head(
            sender=view.me,
            incarnation=view.members[view.me],
            epoch=view.epoch,
            step=self._step,
            round=self._round,
            kind=self.kind,
            tree=tree,
            count=count,
            weight=weight,
        )

    # --- Algorithm ---------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self._step

    @property
    def paused_reason(self) -> Unfit | None:
        """Why nothing happens until the topology changes; None when not paused."""
        return self.unfit(self.view) if self.view and self.phase is Phase.IDLE else None

    def stop_before(self, step: int) -> None:
        self.run = replace(self.run, total_steps=min(self.run.total_steps, step))

    def farewells(self) -> list[Send]:
        views = [self.view, *self._to_come] if self.view else []
        return [
            self._farewell(view, peer)
            for view in views
            for peer in sorted({*view.neighbours, *(j for tree in view.trees for j in tree)})
        ]

    def _farewell(self, view: View, to: PeerId, epoch: Epoch | None = None) -> Send:
        """Views take effect one after the other, but not all of them everywhere (R8). Who is in
        one that this peer leaves early, or never gets to, may wait for it there."""
        own = Head(view.me, view.members[view.me], epoch or view.epoch, self._step, self.kind)
        return Send(to, replace(own, lost=True, left=True), ())

    def steps_in_epoch(self) -> int:
        """Steps finished since the present epoch took effect here."""
        return self._step - self._epoch_start

    def state(self) -> CoreState | None:
        """At the beginning of a step nothing that others sent before it is under way to a peer that
        has begun it, too: all checkpoints of one step are one state of the swarm. With overlap it
        is not so."""
        if self.lag or self.phase is not Phase.TRAINING:
            return None
        kept = self.kept()
        values = {"step": self._step, "epoch_start": self._epoch_start, "method": kept.values}
        return CoreState(values, kept.received)

    def resume(self, state: CoreState) -> None:
        self._step, epoch_start = int(state.values["step"]), int(state.values["epoch_start"])
        if not 0 <= epoch_start <= self._step:
            raise ValueError(f"epoch_start = {epoch_start} at step {self._step}")
        self._resumed = (epoch_start, CoreState(state.values["method"], state.received))

    def next_deadline(self) -> float | None:
        if self.phase is not Phase.WAITING:
            return None
        since = self._waiting_since
        return None if since == math.inf else since + self.least_patience_s()

    def admit(self, head: Head) -> Verdict:
        view = self.view
        if view is None or head.epoch.age > view.epoch.age:
            return Verdict.EPOCH_AHEAD
        if head.epoch != view.epoch:
            return Verdict.EPOCH_BEHIND
        if head.kind is not self.kind or head.round >= self.rounds:
            return Verdict.NOT_A_NEIGHBOUR
        if head.sender not in view.members:
            return Verdict.NOT_A_NEIGHBOUR
        if head.incarnation != view.members[head.sender]:
            return Verdict.OLD_INCARNATION
        if head.left:
            return Verdict.ACCEPTED
        if head.step >= self.run.total_steps:
            return Verdict.FOREIGN_RUN  # nobody may jump (R4) past the end
        verdict = self.judge(view, head)
        if verdict is not Verdict.ACCEPTED:
            return verdict
        label, due = label_of(head), self._due
        if label < due and not self.uses_late:
            return Verdict.STALE_STEP
        slot = self._slots.get((head.tree, head.sender))
        return slot.judge(label, due) if slot else Verdict.ACCEPTED

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects: list[Effect] = []
        match event:  # the commonest first
            case Received():
                effects = self._received(event, now)
            case SendDone(to, head, verdict):
                self._under_way.done(to, head)
                if verdict is not Verdict.EPOCH_BEHIND or not self._is_present(head.epoch):
                    return []  # nobody waits for an answer
                self._to_come.has_gone_on(to)
            case Trained(step, lr):
                effects = self._trained(step, lr, now)
            case NewView(view):
                effects = self._new_view(view, now)
            case Gone(peer, head):
                effects = self._gone(peer, head, now)
            case Tick():
                self._tick(now)
        return effects + self._advance(now)

    # --- topology ----------------------------------------------------------------------------

    def _new_view(self, view: View, now: float) -> list[Effect]:
        known = self._to_come.last or self.view
        if self.phase is Phase.FINISHED or (known and view.epoch.age <= known.epoch.age):
            return []
        self._to_come.add(view)
        if self.phase is Phase.IDLE:
            self._step = max(self._step, view.effective_step)
            return self._begin_step(now)
        if self._step < view.effective_step:
            return []
        effects = self._adopt()
        if self.phase is Phase.WAITING:
            effects += self._exchange(now)
        return effects

    def _adopt(self) -> list[Effect]:
        """Take up the latest view whose time has come (R8)."""
        before, view = self.view, self._to_come.take(self._step)
        if view is None:
            return []
        old_lives = before.members if before else {}
        self._unreachable = {
            peer for peer in self._unreachable if view.members.get(peer) == old_lives.get(peer)
        }
        held = [held.head for slot in self._slots.values() for held in slot.held.values()]
        self._slots, self._due_slots = {}, None  # first: to `admit` the old ones would be its own
        self.view = view
        self._epoch_start = self._step
        self.patience.restart()
        dropped = [effect for head in held for effect in self._over(head)]
        return [*self._under_way.keep(view.members), *dropped, *self._begin_epoch(view)]

    def _over(self, head: Head) -> list[Effect]:
        """A message was admitted, but its epoch is over before it is of use. Its sender waits for
        this peer's, unless it goes on, too; had it come now it would be told by the refusal."""
        drop = Drop(head, DropReason.EPOCH)
        waits = head.sender in self._view.members
        return [drop, self._farewell(self._view, head.sender, head.epoch)] if waits else [drop]

    def _begin_epoch(self, view: View) -> list[Effect]:
        """Start over, unless this is the epoch of a swarm that was stopped, under another name."""
        resumed, self._resumed = self._resumed, None
        if not (resumed and view.resumes):
            return self.begin_epoch(view)
        self._epoch_start, state = resumed
        self.restore(state)
        return []

    # --- the course of a step ----------------------------------------------------------------

    def _begin_step(self, now: float) -> list[Effect]:  # noqa: ARG002
        effects = self._adopt()
        if self._step >= self.run.total_steps:
            self.phase = Phase.FINISHED
            return [*effects, Finished(self._step)]
        if self.unfit(self._view):
            self.phase = Phase.IDLE
            self.patience.restart()
            return effects
        self.phase = Phase.TRAINING
        train = Train(self._step, self.lr_scale(self._view), self.momentum())
        return [*effects, *self.before_training(), train]

    def _trained(self, step: int, lr: Coef, now: float) -> list[Effect]:
        assert self.phase is Phase.TRAINING, f"trained {step} while {self.phase}"
        assert step == self._step, f"trained {step}, asked for {self._step}"
        self.lr = lr
        self._jump_ahead()
        effects = self._adopt()
        self.phase = Phase.WAITING
        self._trained_at = now
        return effects + self._exchange(now)

    def _jump_ahead(self) -> None:
        """R4."""
        ahead = [slot.ahead((self._step, self.rounds)) for slot in self._slots.values()]
        behind = [label[0] for label in ahead if label and self.left_behind(self._view, label)]
        self._step = max([self._step, *behind])

    def _exchange(self, now: float) -> list[Effect]:
        """Begin the messages of a step. With overlap they go out once the last ones are in."""
        self._round = 0
        self._taken = []
        self._timed_out = 0
        waits = not self._view.weight and self._waits_for_trainers()
        self._waiting_since = math.inf if waits else now
        return [] if self.lag else self._send()

    def _send(self) -> list[Effect]:
        sends = self.outgoing(self._view)
        return [effect for send in sends for effect in self._under_way.send(send)]

    def _advance(self, now: float) -> list[Effect]:
        """Combine as soon as nothing is awaited any more, round after round."""
        effects: list[Effect] = []
        while self.phase is Phase.WAITING and not self._awaited():
            effects += self._complete(now)
        return effects

    def _awaited(self) -> list[Edge]:
        """The edges that are waited for. A peer that can reach nobody waits for anybody, or for
        the topology that mends it, as long as for a neighbour that hangs (R6): it would run away
        from the others, learning from its own data alone."""
        due = self._due
        missing = [(edge, slot) for edge, slot in self._slots_due(due) if slot.seen < due]
        if not missing:
            return []
        others = self._slots.values()
        cut_off = not self._to_come and all(slot.silent for slot in others)
        awaited = [edge for edge, slot in missing if slot.awaited(due, cut_off=cut_off)]
        return [edge for edge in awaited if self._to_come.has(edge[1], self._view)]

    def _slots_due(self, due: Label) -> list[tuple[Edge, Slot]]:
        """The edges over which messages are due, with their slots: asked at every event."""
        if self._due_slots is None or self._due_slots[0] != due:
            self._due_slots = (due, [(edge, self._slot(edge)) for edge in self._edges])
        return self._due_slots[1]

    def _complete(self, now: float) -> list[Effect]:
        inbox, effects = self._take()
        effects += self._combine(inbox)
        if self._round + 1 < self.rounds:
            self._round += 1
            self._waiting_since = now
            return effects + self._send()
        effects.append(self._averaged(now))
        self.patience.step_ended(now, timed_out=self._timed_out > 0)
        self._round = 0  # first: `admit` must take no message of the next step for a late one
        self._step += 1
        return effects + self._begin_step(now)

    def _take(self) -> tuple[Inbox, list[Effect]]:
        """What there is to use now (R2), and what turns out to be of no use."""
        inbox: dict[Edge, Received | None] = {}
        dropped: list[Effect] = []
        due = self._due
        for edge, slot in self._slots_due(due):
            received = slot.take(due)
            if received and not self.uses_late and label_of(received.head) < due:
                dropped.append(Drop(received.head, DropReason.STALE))
                received = None
            inbox[edge] = received
        used = (label_of(received.head) if received else None for received in inbox.values())
        self._taken += [(due, label) for label in used]
        return inbox, dropped

    def _combine(self, inbox: Inbox) -> list[Effect]:
        if not self.lag:
            return self.combine(self._view, inbox)
        self.arrived(inbox)
        return self._send() + self.combine(self._view, inbox)

    def arrived(self, inbox: Inbox) -> None:
        """With overlap: the messages that are about to be both relayed and used."""

    def _averaged(self, now: float) -> Averaged:
        used = [(due, label) for due, label in self._taken if label]
        return Averaged(
            step=self._step,
            counted=self.counted(),
            swarm_size=self._view.n,
            expected=len(self._taken),
            missed=len(self._taken) - len(used),
            late=sum(label < due for due, label in used),
            waited_s=now - self._trained_at,
            timed_out=self._timed_out,
        )

    # --- what comes in -----------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> list[Effect]:
        self._unreachable.discard(event.head.sender)
        verdict = self.admit(event.head)
        if verdict is Verdict.EPOCH_BEHIND:
            return self._over(event.head)
        if verdict is not Verdict.ACCEPTED:
            return [Drop(event.head, DROP_REASONS.get(verdict, DropReason.UNEXPECTED))]
        if self._waiting_since == math.inf:
            self._heard(event.head, now)
        slot = self._slot((event.head.tree, event.head.sender))
        return [Drop(head, reason) for head, reason in slot.offer(event, self._due)]

    def _gone(self, peer: PeerId, head: Head | None, now: float) -> list[Effect]:
        if head is None:
            self._unreachable.add(peer)
            for edge in [*self._slots, *(self._edges if self.view else ())]:
                if edge[1] == peer:
                    self._slot(edge).silent = True
            if self._waiting_since == math.inf and not self._waits_for_trainers():
                self._waiting_since = now
        elif self.admit(head) is not Verdict.ACCEPTED:
            pass
        elif head.left:
            self._to_come.has_gone_on(peer)
        else:
            if self._waiting_since == math.inf:
                self._heard(head, now)
            self._slot((head.tree, head.sender)).lost(label_of(head))
        return []

    def _waits_for_trainers(self) -> bool:
        """A peer without data is done with its step at once: its patience begins when a neighbour
        that trains is done, or another one is further. Where all of them are out of reach it waits
        for one to come back; but in the last step they have finished by then, and none does."""
        weights = self._view.weights
        trainers = [edge for edge in self._edges if weights.get(edge[1])]
        is_last = self._step + 1 >= self.run.total_steps
        return any(not (is_last and self._slot(edge).silent) for edge in trainers)

    def _heard(self, head: Head, now: float) -> None:
        if self.phase is Phase.WAITING:
            label = label_of(head)
            if label > self._due or (label == self._due and self._view.weights.get(head.sender)):
                self._waiting_since = now

    def _tick(self, now: float) -> None:
        if self.phase is Phase.WAITING:
            for edge in self._awaited():
                if now >= self._waiting_since + self.patience_s(edge):
                    self._timed_out += 1
                    self._slot(edge).time_out()
                    self._slot(edge).lost(self._due)

    # --- small things ------------------------------------------------------------------------

    @property
    def _view(self) -> View:
        assert self.view is not None, "no topology yet"
        return self.view

    def _is_present(self, epoch: Epoch) -> bool:
        return self.view is not None and epoch == self.view.epoch

    @property
    def _label(self) -> Label:
        return (self._step, self._round)

    @property
    def _due(self) -> Label:
        """The label that this round's combination uses."""
        return (self._step - self.lag, self._round)

    @property
    def _edges(self) -> tuple[Edge, ...]:
        """The edges over which the messages due come, if this peer was in the epoch by then."""
        return self.expects(self._view, self._due) if self._due[0] >= self._epoch_start else ()

    def _slot(self, edge: Edge) -> Slot:
        if edge not in self._slots:
            slot = Slot(start=(self._view.effective_step - 1, self.rounds))
            slot.silent = edge[1] in self._unreachable
            self._slots[edge] = slot
        return self._slots[edge]
