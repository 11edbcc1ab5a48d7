"""The course of a step that all methods with steps share: train, send, wait, combine.

A concrete method says what to send, from whom to expect what, and how to combine it; this file
decides when. It is the home of the rules that concern a peer as a whole:

    R4  A peer that has finished its local steps and holds a label > t labels its own message with
        the largest such label: it jumps ahead, and its relayed sums stay valid.
    R7  At most two messages are under way per (neighbour, tree); a newer one cancels the older.
        (To send t+2 a peer needs the neighbour's t+1, for which the neighbour needed this peer's
        t: the one that is cancelled has arrived, or is of no use. With a bound of one, a message
        that is merely slow would be lost.)
    R8  A new epoch clears slots and last-used labels.

A failure therefore costs at most three deadlines once, and never one a step. The rules that
concern a single edge are in `slots`. R9 (a finished peer lingers) is the driver's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import ClassVar, TypeAlias

from peer.algorithms.core import (
    Algorithm,
    Averaged,
    Cancel,
    Coef,
    Drop,
    DropReason,
    Effect,
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
from peer.algorithms.slots import Label, Slot, label_of

Edge: TypeAlias = tuple[int, PeerId]
"""(tree, neighbour); the tree is 0 for methods without trees."""

MOST_UNDER_WAY = 2  # R7

Inbox: TypeAlias = Mapping[Edge, Received | None]


class Phase(Enum):
    IDLE = "waiting for a topology"
    TRAINING = "training"
    WAITING = "averaging"
    FINISHED = "finished"


class Synchronous(Algorithm):
    """A method in which each step is local steps, then one or more rounds of messages."""

    kind: ClassVar[Kind]
    rounds: ClassVar[int] = 1
    uses_late: ClassVar[bool] = False  # whether a message of an earlier step is of use

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lag = 0  # 1 with overlap: a message of step t is used in step t+1
        self.phase = Phase.IDLE
        self.lr: Coef = 0
        self.view: View | None = None
        self._next_view: View | None = None
        self._step = run.start_step
        self._epoch_start = run.start_step
        self._round = 0
        self._waiting_since = 0.0
        self._slots: dict[Edge, Slot] = {}
        self._under_way: dict[Edge, list[Head]] = {}

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

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        """Start the method's state over (R8)."""
        return []

    def before_training(self) -> list[Effect]:
        """Effects before each step's training, while the live register still holds x^(t)."""
        return []

    def lr_scale(self, view: View) -> Coef:  # noqa: ARG002
        return 1

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

    def steps_in_epoch(self) -> int:
        """Steps finished since the present epoch took effect here."""
        return self._step - self._epoch_start

    def next_deadline(self) -> float | None:
        if self.phase is not Phase.WAITING:
            return None
        return self._waiting_since + self.run.deadline_s

    def admit(self, head: Head) -> Verdict:
        view = self.view
        if view is None or head.epoch.age > view.epoch.age:
            return Verdict.EPOCH_AHEAD
        if head.epoch != view.epoch:
            return Verdict.EPOCH_BEHIND
        if head.sender not in view.members or head.kind is not self.kind:
            return Verdict.NOT_A_NEIGHBOUR
        if head.incarnation != view.members[head.sender]:
            return Verdict.OLD_INCARNATION
        verdict = self.judge(view, head)
        if verdict is not Verdict.ACCEPTED:
            return verdict
        slot = self._slots.get((head.tree, head.sender))
        return slot.judge(label_of(head), self._label) if slot else Verdict.ACCEPTED

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case NewView(view):
                effects = self._new_view(view, now)
            case Trained(step, lr):
                effects = self._trained(step, lr, now)
            case Received():
                effects = self._received(event)
            case Gone(peer, head):
                effects = self._gone(peer, head)
            case SendDone(to, head):
                effects = self._sent(to, head)
            case Tick():
                effects = self._tick(now)
        return effects + self._advance(now)

    # --- topology ----------------------------------------------------------------------------

    def _new_view(self, view: View, now: float) -> list[Effect]:
        if self.phase is Phase.FINISHED or (self.view and view.epoch.age <= self.view.epoch.age):
            return []
        self._next_view = view
        for (_, peer), slot in self._slots.items():
            slot.silent = slot.silent or peer not in view.members
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
        """Take up the next view if its time has come (R8)."""
        view = self._next_view
        if view is None or self._step < view.effective_step:
            return []
        self.view, self._next_view = view, None
        self._epoch_start = self._step
        self._slots = {}
        cancelled = [Cancel(to, h) for (_, to), heads in self._under_way.items() for h in heads]
        self._under_way = {}
        return [*cancelled, *self.begin_epoch(view)]

    # --- the course of a step ----------------------------------------------------------------

    def _begin_step(self, now: float) -> list[Effect]:  # noqa: ARG002
        effects = self._adopt()
        if self._step >= self.run.total_steps:
            self.phase = Phase.FINISHED
            return [*effects, Finished(self._step)]
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
        return effects + self._exchange(now)

    def _jump_ahead(self) -> None:
        """R4."""
        ahead = [slot.ahead((self._step, self.rounds)) for slot in self._slots.values()]
        self._step = max([self._step, *(label[0] for label in ahead if label)])

    def _exchange(self, now: float) -> list[Effect]:
        """Begin the messages of a step. With overlap they go out once the last ones are in."""
        self._round = 0
        self._waiting_since = now
        return [] if self.lag else self._send()

    def _send(self) -> list[Effect]:
        effects: list[Effect] = []
        for send in self.outgoing(self._view):
            under_way = self._under_way.setdefault((send.head.tree, send.to), [])
            if len(under_way) == MOST_UNDER_WAY:
                effects.append(Cancel(send.to, under_way.pop(0)))  # R7
            under_way.append(send.head)
            effects.append(send)
        return effects

    def _sent(self, to: PeerId, head: Head) -> list[Effect]:
        under_way = self._under_way.get((head.tree, to), [])
        if head in under_way:
            under_way.remove(head)
        return []

    def _advance(self, now: float, *, waited_out: bool = False) -> list[Effect]:
        """Combine as soon as nothing is awaited any more, round after round."""
        effects: list[Effect] = []
        while self.phase is Phase.WAITING:
            if not waited_out and any(self._slot(edge).awaited(self._due) for edge in self._edges):
                break
            waited_out = False
            effects += self._complete(now)
        return effects

    def _complete(self, now: float) -> list[Effect]:
        inbox = {edge: self._take(edge) for edge in self._edges}
        effects = self._combine(inbox)
        if self._round + 1 < self.rounds:
            self._round += 1
            self._waiting_since = now
            return effects + self._send()
        effects.append(self._averaged(inbox, now))
        self._step += 1
        return effects + self._begin_step(now)

    def _combine(self, inbox: Inbox) -> list[Effect]:
        if not self.lag:
            return self.combine(self._view, inbox)
        self.arrived(inbox)
        return self._send() + self.combine(self._view, inbox)

    def arrived(self, inbox: Inbox) -> None:
        """With overlap: the messages that are about to be both relayed and used."""

    def _averaged(self, inbox: Inbox, now: float) -> Averaged:
        used = [received for received in inbox.values() if received]
        return Averaged(
            step=self._step,
            counted=self.counted(),
            swarm_size=self._view.n,
            expected=len(inbox),
            missed=len(inbox) - len(used),
            late=sum(label_of(received.head) < self._due for received in used),
            waited_s=now - self._waiting_since,
        )

    # --- what comes in -----------------------------------------------------------------------

    def _received(self, event: Received) -> list[Effect]:
        if self.admit(event.head) is not Verdict.ACCEPTED:
            return [Drop(event.head, DropReason.STALE)]
        slot = self._slot((event.head.tree, event.head.sender))
        return [Drop(head, reason) for head, reason in slot.offer(event, self._label)]

    def _gone(self, peer: PeerId, head: Head | None) -> list[Effect]:
        if head is None:
            for (_, other), slot in self._slots.items():
                slot.silent = slot.silent or other == peer
        elif self.view and head.epoch == self.view.epoch and head.sender in self.view.members:
            self._slot((head.tree, head.sender)).lost(label_of(head))
        return []

    def _tick(self, now: float) -> list[Effect]:
        deadline = self.next_deadline()
        if deadline is None or now < deadline:
            return []
        for edge in self._edges:
            if self._slot(edge).awaited(self._due):
                self._slot(edge).time_out()
        return self._advance(now, waited_out=True)

    # --- small things ------------------------------------------------------------------------

    @property
    def _view(self) -> View:
        assert self.view is not None, "no topology yet"
        return self.view

    @property
    def _label(self) -> Label:
        return (self._step, self._round)

    @property
    def _due(self) -> Label:
        """The label that this round's combination uses."""
        return (self._step - self.lag, self._round)

    @property
    def _edges(self) -> tuple[Edge, ...]:
        return self.expects(self._view, self._due)

    def _slot(self, edge: Edge) -> Slot:
        if edge not in self._slots:
            self._slots[edge] = Slot(start=(self._epoch_start - 1, self.rounds))
        return self._slots[edge]

    def _take(self, edge: Edge) -> Received | None:
        received = self._slot(edge).take(self._due)
        fresh = received is None or self.uses_late or label_of(received.head) == self._due
        return received if fresh else None
