"""The course of methods that average in pairs: train, call a neighbour, average, begin again.

Each peer goes at its own pace. A concrete method says what it offers and what the two make of it;
this file decides who calls, and when. It is the home of these rules:

    Partners  A peer that is trained draws a neighbour, each as likely unless there are weights,
              and another one when that is busy; when all are, it pauses for a random time. After a
              deadline it goes on alone.
    Turns     With a script a peer calls whom its turn says, and answers only whose turn it is.
    The end   A peer that has finished goes on answering. When its process no longer can it refuses
              (STALE_STEP), and its neighbours look elsewhere.

What concerns a single exchange is in `exchange`, who is worth calling in `partners`, whose turn it
is in `script`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar

from peer.algorithms.clipping import clipped
from peer.algorithms.core import (
    Algorithm,
    Apart,
    Averaged,
    Cancel,
    Conserved,
    Drop,
    DropReason,
    Effect,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    Lin,
    Message,
    NewView,
    OptionError,
    PeerId,
    Quantize,
    Received,
    Reg,
    Role,
    Run,
    Send,
    SendDone,
    Tick,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.draw import Draw
from peer.algorithms.exchange import ARRIVED, Exchanges, Outcome
from peer.algorithms.partners import Partners
from peer.algorithms.script import Script, Turn, Turns, parse_script

PAUSE_S = 0.01  # at least, before calling again when all neighbours were busy; at most twice that
PAUSE_PARTS = 1024
QUANTIZERS = ("none", "lattice")
ENDLESS = 1 << 40  # local steps, more than fit into any budget
ROUNDED = Reg("rounded")  # Q of what this peer shares, as the present exchange's message has it


@dataclass(frozen=True)
class Options:
    """`geometric`: the number of local steps is drawn, with the run's as its mean.

    `script`: interactions (initiator, partner, local steps) to go through in place of drawn ones;
    peers then finish with it, whatever the run's number of steps. `quantize`: whether Q, through
    which both copies of an exchange go, is the identity (none) or rounds to the lattice.
    `time_budget_s`: how long local training goes on before an interaction, whatever the number of
    local steps; 0: their number is the run's. `neighbour_weights`: how likely a peer is drawn by a
    neighbour, relative to its others; 1 where nothing is said. Raises OptionError.
    """

    geometric: bool = False
    script: Iterable[Sequence[Any]] = ()
    quantize: str = "none"
    time_budget_s: float = 0.0
    neighbour_weights: Mapping[PeerId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.quantize not in QUANTIZERS:
            remedy = f"choose one of {', '.join(QUANTIZERS)}"
            raise OptionError("quantize", self.quantize, "unknown quantizer", remedy)
        object.__setattr__(self, "script", tuple(tuple(row) for row in self.script))
        parse_script(self.script)
        self._check_budget()
        self._check_weights()

    def _check_budget(self) -> None:
        """Of two that say how many local steps to take, one would be ignored."""
        budget = self.time_budget_s
        if not (math.isfinite(budget) and budget >= 0):
            remedy = "set it to a number of seconds, or 0 for none"
            raise OptionError("time_budget_s", budget, "not a time", remedy)
        for other in ("script", "geometric"):
            if budget and getattr(self, other):
                problem = f"algorithm.options.{other} says how many local steps to take"
                raise OptionError("time_budget_s", budget, problem, "leave one of the two out")

    def _check_weights(self) -> None:
        for peer, weight in self.neighbour_weights.items():
            if not (math.isfinite(weight) and weight > 0):
                remedy = "give a number above 0; to leave an edge out, leave it out of the graph"
                raise OptionError(f"neighbour_weights.{peer}", weight, "not a weight", remedy)
        if self.neighbour_weights and self.script:
            problem = "algorithm.options.script says who calls whom"
            weights = dict(self.neighbour_weights)
            raise OptionError("neighbour_weights", weights, problem, "leave one of the two out")


class Phase(Enum):
    IDLE = "waiting for a topology"
    TRAINING = "training"
    CALLING = "averaging"
    LISTENING = "waiting for its turn"
    FINISHED = "finished"


class Pairwise(Algorithm):
    """A method in which two peers at a time average. `step` counts this peer's local training."""

    shared: ClassVar[Reg]  # what this peer offers and replies, and what exchanges change
    conserves = Conserved.WEIGHT
    clips = True
    holds: ClassVar[bool] = False  # offers that come in while it trains; or answers them at once

    def __init__(self, run: Run, options: Options) -> None:
        self.run = run
        self.phase = Phase.IDLE
        self.view: View | None = None
        self._options = options
        self._rounds = options.quantize == "lattice"
        self._step = run.start_step
        self._local_steps = run.start_step * run.local_steps  # taken so far
        self._trained_at = 0.0
        self._paused_until = 0.0
        self._exchanges = Exchanges(yields=not self.holds)
        self._seed("")

    def _seed(self, me: PeerId) -> None:
        self._draw = Draw(self.run.seed, me)
        self._partners = Partners(self._draw, self._options.neighbour_weights)
        interactions = parse_script(self._options.script)
        self._turns = Script(interactions, me) if interactions else Turns()

    @property
    def own(self) -> Reg:
        """Q of this peer's own vector, as its partner gets it: valid while an exchange lasts."""
        return ROUNDED if self._rounds else self.shared

    @property
    def registers(self) -> Mapping[str, Role]:
        return {ROUNDED.name: Role.MODEL} if self._rounds else {}

    # --- what a method says ------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> list[Effect]:
        """Set up the registers, while the live one holds x^(0)."""

    @abstractmethod
    def initiated(self, x_j: Message | None) -> list[Effect]:
        """End a step as the initiator, with the partner's reply; None: alone."""

    @abstractmethod
    def visited(self, x_i: Message) -> list[Effect]:
        """Average as the partner."""

    def before_training(self) -> list[Effect]:
        return []

    def turn_to_train(self, turns: Turns) -> Turn | None:
        """By the script: the turn to train for now, if it is time for that."""
        return turns.next_call

    def after_visit(self, now: float, *, complete: bool) -> list[Effect]:  # noqa: ARG002
        """After its turn as the partner, a peer that listens may find it time to train."""
        return self._train() if self.phase is Phase.LISTENING else []

    # --- Algorithm ---------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self._step

    @property
    def turns_done(self) -> int:
        """How many interactions of its script this peer is done with."""
        return self._turns.count

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How this peer's own calls ended."""
        return self._exchanges.outcomes

    @property
    def visits(self) -> Counter[Outcome]:
        """How the exchanges ended to which other peers called this one."""
        return self._exchanges.visits

    @property
    def exchanges(self) -> Mapping[tuple[str, str], int]:
        sides = (("initiator", self.outcomes), ("partner", self.visits))
        return {(role, o.value): n for role, ended in sides for o, n in ended.items()}

    def next_deadline(self) -> float | None:
        if self._exchanges.engaged:
            return self._exchanges.next_deadline()
        if self.phase is Phase.CALLING and self._turns.mine:
            return self._paused_until
        return self._turn_ends_at if self._awaits_turn else None

    def admit(self, head: Head) -> Verdict:
        view = self.view
        if view is None or head.epoch.age > view.epoch.age:
            return Verdict.EPOCH_AHEAD
        if head.epoch != view.epoch:
            return Verdict.EPOCH_BEHIND
        kinds = (Kind.OFFER, Kind.REPLY)
        if head.sender not in view.neighbours or head.kind not in kinds or head.round:
            return Verdict.NOT_A_NEIGHBOUR
        if head.incarnation != view.members[head.sender]:
            return Verdict.OLD_INCARNATION
        if head.count != 1 and not head.lost:
            return Verdict.BAD_COUNT
        verdict = self._exchanges.judge(view, head)
        return self._timely(head) if verdict is Verdict.ACCEPTED else verdict

    def _timely(self, head: Head) -> Verdict:
        timely = head.kind is Kind.REPLY or self._turns.is_of(head.sender)
        return Verdict.ACCEPTED if timely else Verdict.BUSY

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case NewView(view):
                effects = self._new_view(view, now)
            case Trained(step, _, taken):
                effects = self._trained(step, taken, now)
            case Received(head):
                effects = self._received(event, now)
            case Gone(peer, head):
                effects = self._lost(head) if head else self._leave(peer, now)
            case SendDone(to, head, verdict):
                effects = self._sent(to, head, verdict, now)
            case Tick():
                effects = self._tick(now)
        return effects + self._advance(now)

    # --- the course of a step ----------------------------------------------------------------

    def _new_view(self, view: View, now: float) -> list[Effect]:
        if self.view and view.epoch.age <= self.view.epoch.age:
            return []
        self._exchanges.forget()  # first: `admit` would take what comes in this epoch for known
        self.view = view
        if self.phase is Phase.IDLE:
            self._seed(view.me)
            self._turns.keep(view.members, now)
            return [*self.begin(), *self._train()]
        self._turns.keep(view.members, now)
        effects = self._exchanges.hang_up() if self._exchanges.call else []
        initiator = self._exchanges.initiator
        if initiator and initiator not in view.members:
            effects += self._end_visit(now)
        return effects

    def _train(self) -> list[Effect]:
        turns, turn = self._turns, self.turn_to_train(self._turns)
        if not turns.next if turns.scripted else self._step >= self.run.total_steps:
            self.phase = Phase.FINISHED
            return [Finished(self._step)]
        if turns.scripted and not turn:
            self.phase = Phase.LISTENING
            return []
        self.phase = Phase.TRAINING
        budget_s = self._options.time_budget_s
        train = Train(self._step, local_steps=self._count(turn), budget_s=budget_s)
        return [*self.before_training(), train]

    def _count(self, turn: Turn | None) -> range | None:
        """The local steps to take now; None where their number is the run's."""
        if self._options.time_budget_s:
            return range(self._local_steps, self._local_steps + ENDLESS)
        if not turn and not self._options.geometric:
            return None
        steps = turn.local_steps if turn else self._geometric(self.run.local_steps)
        self._local_steps += steps
        return range(self._local_steps - steps, self._local_steps)

    def _geometric(self, mean: int) -> int:
        """A number from 1 on, with the geometric distribution of this mean."""
        steps = 1
        while self._draw.below(mean):
            steps += 1
        return steps

    def _trained(self, step: int, taken: int, now: float) -> list[Effect]:
        assert self.phase is Phase.TRAINING, f"trained {step} while {self.phase}"
        assert step == self._step, f"trained {step}, asked for {self._step}"
        if self._options.time_budget_s:
            self._local_steps += taken
        self.phase = Phase.CALLING
        self._trained_at = self._paused_until = now
        self._partners.begin()
        held = self._exchanges.held
        return self._answer(held, now) if held else []

    def _advance(self, now: float) -> list[Effect]:
        """Call somebody, if it is time to."""
        calling = self.phase is Phase.CALLING and self._turns.mine
        if not calling or self._exchanges.engaged or now < self._paused_until:
            return []
        view, candidates = self._view, self._candidates()
        if not candidates or now >= self._turn_ends_at:
            return self._go_on(None, now)
        to = self._partners.pick(candidates, self._step)
        if to:
            deadline = now + self.run.deadline_s
            call = self._exchanges.dial(view, self._step, to, self._own(), deadline)
            return self._through_q(call, self._step)
        self._partners.begin()
        self._paused_until = now + PAUSE_S * (1 + self._draw.below(PAUSE_PARTS) / PAUSE_PARTS)
        return []

    def _candidates(self) -> Sequence[PeerId]:
        scripted = self._turns.next
        neighbours = (scripted.other,) if scripted else self._view.neighbours
        return self._partners.awake(neighbours, self._step)

    def _go_on(self, reply: Received | None, now: float) -> list[Effect]:
        """The end of a step as the initiator, without a reply alone."""
        self._turns.done(now)
        x_j = self._held(reply) if reply else None
        effects = [*self._apart(x_j), *self.initiated(x_j)]
        return [*effects, *self._next_step(now, complete=reply is not None)]

    def _next_step(self, now: float, *, complete: bool) -> list[Effect]:
        averaged = self._averaged(now, complete=complete)
        self._step += 1
        return [averaged, *self._train()]

    def _averaged(self, now: float, *, complete: bool) -> Averaged:
        expected = int(bool(self._view.neighbours))
        return Averaged(
            step=self._step,
            counted=1 + complete,
            swarm_size=self._view.n,
            expected=expected,
            missed=expected - complete,
            late=0,
            waited_s=now - self._trained_at,
        )

    # --- what comes in -----------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> list[Effect]:
        verdict = self.admit(event.head)
        if verdict is Verdict.BUSY:  # engaged since it was admitted
            declined = self._exchanges.decline(event.head, self._view, self._step)
            return [Drop(event.head, DropReason.UNEXPECTED), declined]
        if verdict is not Verdict.ACCEPTED:
            return [Drop(event.head, DropReason.STALE)]
        self._partners.heard(event.head.sender)
        if event.head.kind is Kind.OFFER:
            return self._offered(event, now)
        self._exchanges.hang_up(Outcome.BOTH)
        return self._go_on(event, now)

    def _offered(self, event: Received, now: float) -> list[Effect]:
        crossed = self._exchanges.hang_up() if self._exchanges.call else []
        if self.holds and self.phase is Phase.TRAINING:
            self._exchanges.held = event
            return crossed
        return [*crossed, *self._answer(event, now)]

    def _answer(self, offer: Received, now: float) -> list[Effect]:
        deadline = now + self.run.deadline_s
        reply = self._exchanges.receive(offer, self._view, self._step, self._own(), deadline)
        return self._through_q(reply, offer.head.step)

    def _lost(self, head: Head) -> list[Effect]:
        """A message that will not come: an offer is declined; without a reply the call failed. When
        it is this peer's own offer, or one that has come, the call broke."""
        if head.kind is Kind.OFFER:
            if self._exchanges.is_broken_call(head):
                return self._exchanges.hang_up()
            if self._exchanges.is_broken_visit(head):
                return self._exchanges.break_off()
        if self.admit(head) is not Verdict.ACCEPTED:
            return []
        self._partners.heard(head.sender)
        if head.kind is Kind.OFFER:
            return [self._exchanges.decline(head, self._view, self._step)]
        return self._exchanges.hang_up(Outcome.PARTNER_ONLY if head.count else Outcome.NONE)

    def _leave(self, peer: PeerId, now: float) -> list[Effect]:
        """A peer cannot be reached any more."""
        effects: list[Effect] = []
        if self.phase is not Phase.IDLE:
            self._partners.unanswered(peer, self._step, unreachable=True)
        if self._exchanges.call and self._exchanges.call.to == peer:
            effects += self._exchanges.hang_up()
        if self._exchanges.initiator == peer:
            effects += self._end_visit(now)
        return effects

    def _sent(self, to: PeerId, head: Head, verdict: Verdict | None, now: float) -> list[Effect]:
        call, visit = self._exchanges.call, self._exchanges.visit
        if call and (to, head) == (call.to, call.head):
            call.arrived = verdict in ARRIVED
            if verdict in (None, Verdict.STALE_STEP):  # no answer; it has ended
                self._partners.unanswered(to, self._step, unreachable=verdict is not None)
            return [] if call.arrived else self._exchanges.hang_up(Outcome.NONE)
        if visit and (to, head) == (visit.initiator, visit.reply):
            if verdict is None:
                return self._part(now, Outcome.PARTNER_ONLY)
            arrived = verdict in ARRIVED
            return self._part(now, Outcome.BOTH) if arrived else self._exchanges.break_off()
        return []

    def _part(self, now: float, outcome: Outcome) -> list[Effect]:
        """The end of an exchange at the partner."""
        x_i = self._held(self._exchanges.part(outcome))
        self._turns.done(now)
        return [*self._apart(x_i), *self.visited(x_i), *self.after_visit(now, complete=True)]

    def _end_visit(self, now: float) -> list[Effect]:
        """The initiator is gone. It may have got the reply; an offer that is held is forgotten."""
        if self._exchanges.visit:
            return self._part(now, Outcome.PARTNER_ONLY)
        return self._exchanges.break_off()

    def _tick(self, now: float) -> list[Effect]:
        call, visit = self._exchanges.call, self._exchanges.visit
        effects: list[Effect] = []
        if call and now >= call.deadline:
            self._partners.unanswered(call.to, self._step)
            effects += self._exchanges.hang_up()
        if visit and now >= visit.deadline:
            over = self._part(now, Outcome.PARTNER_ONLY)
            effects += [Cancel(visit.initiator, visit.reply), *over]
        if self._awaits_turn and now >= self._turn_ends_at:
            self._turns.done(now)  # given up
            effects += self.after_visit(now, complete=False)
        return effects

    # --- small things ------------------------------------------------------------------------

    def _held(self, received: Received) -> Message:
        return clipped(received.messages[0], self.shared, self.run.clip)

    def _own(self) -> Lin:
        return Lin(((1, self.own),))

    def _through_q(self, send: Send, step: int) -> list[Effect]:
        """Send Q of this peer's vector. What it is rounded to depends on the initiator's step, not
        on how often it had to call."""
        if not self._rounds:
            return [send]
        place = replace(send.head, step=step, exchange=0)
        return [Quantize(ROUNDED, Lin(((1, self.shared),)), send.to, place), send]

    def _apart(self, other: Message | None) -> list[Effect]:
        """What came is so far from this peer's own, by which the next one is rounded."""
        known = other is not None and self._rounds
        return [Apart(Lin(((1, self.shared), (-1, other))))] if known and other else []

    @property
    def _awaits_turn(self) -> bool:
        """Whether nothing goes on until another peer calls."""
        waits = self.phase in (Phase.CALLING, Phase.LISTENING)
        return waits and not self._turns.mine and not self._exchanges.engaged

    @property
    def _turn_ends_at(self) -> float:
        return self._turns.ends_at(self._trained_at, self.run.deadline_s)

    @property
    def _view(self) -> View:
        assert self.view is not None, "no topology yet"
        return self.view
