"""SwarmSGD, non-blocking: Nadiradze et al. 2021, Lemma B.8 and section B.4 of the appendix.

The papers print no pseudo-code for this form; these rules follow from the definitions of S_t^i,
S_t^j and X_{t+1} in the lemma. Each peer i has a communication copy X_i, which exchanges read and
write, and a computation x that started from X_hat_i: the value of X_i when i was last the
*initiator*, at first the initial model. When its local steps are done, having moved x by

    delta_i = x - X_hat_i              (-lr times the sum of the gradients along the way)

it draws a partner j among its neighbours, each as likely, sends X_i (an OFFER), gets X_j (a REPLY):

    avg = (X_i + X_j) / 2
    X_j <- avg                         at the partner, whose own computation goes on untouched
    X_i <- avg + delta_i               at the initiator,
    X_hat_i <- X_i,  x <- X_i          which goes on from here

So the mean of all X moves by delta_i / n and by nothing else. A peer takes part in one exchange at
a time; what follows from that for calls that cross, fail or stay unanswered is in `exchange`. The
partner averages once its reply is sent, the initiator once the reply is complete: an exchange that
breaks may change the partner alone, but never the initiator alone.

Float buffers have no delta, which could make a variance negative: they are averaged plainly. The
register of X_hat is a CORRECTION, zero there, and the initiator's formula is written so that it
says (x + X_j) / 2 where X_hat is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from peer.algorithms.core import (
    LIVE,
    Algorithm,
    Averaged,
    Cancel,
    Drop,
    DropReason,
    Effect,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    Lin,
    NewView,
    Observe,
    PeerId,
    Received,
    Reg,
    Role,
    Run,
    SendDone,
    Set,
    Tick,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.draw import Draw
from peer.algorithms.exchange import ARRIVED, Exchanges, Outcome
from peer.algorithms.partners import Partners

X = Reg(LIVE)  # x, the model that computes
COPY = Reg("communication")  # X_i
START = Reg("start")  # X_hat_i
OWN = Lin(((1, COPY),))

PAUSE_S = 0.01  # at least, before calling again when all neighbours were busy; at most twice that
PAUSE_PARTS = 1024


@dataclass(frozen=True)
class Options:
    """None."""


class Phase(Enum):
    IDLE = "waiting for a topology"
    TRAINING = "training"
    CALLING = "averaging"
    FINISHED = "finished"


class SwarmSGD(Algorithm):
    """Averages in pairs, each peer in its own time. `step` counts the exchanges it initiated."""

    name = "swarmsgd"

    def __init__(self, run: Run, options: Options | None = None) -> None:
        self.run = run
        self.options = options or Options()
        self.phase = Phase.IDLE
        self.view: View | None = None
        self._step = run.start_step
        self._trained_at = 0.0
        self._paused_until = 0.0
        self._exchanges = Exchanges()
        self._seed("")

    def _seed(self, me: PeerId) -> None:
        self._draw = Draw(self.run.seed, me)
        self._partners = Partners(self._draw)

    @property
    def registers(self) -> Mapping[str, Role]:
        return {COPY.name: Role.MODEL, START.name: Role.CORRECTION}

    @property
    def step(self) -> int:
        return self._step

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How this peer's own calls ended."""
        return self._exchanges.outcomes

    def next_deadline(self) -> float | None:
        pausing = self.phase is Phase.CALLING and not self._exchanges.engaged
        return self._paused_until if pausing else self._exchanges.next_deadline()

    def admit(self, head: Head) -> Verdict:
        view = self.view
        if view is None or head.epoch.age > view.epoch.age:
            return Verdict.EPOCH_AHEAD
        if head.epoch != view.epoch:
            return Verdict.EPOCH_BEHIND
        if head.sender not in view.neighbours or head.kind not in (Kind.OFFER, Kind.REPLY):
            return Verdict.NOT_A_NEIGHBOUR
        if head.incarnation != view.members[head.sender]:
            return Verdict.OLD_INCARNATION
        return self._exchanges.judge(view, head)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case NewView(view):
                effects = self._new_view(view, now)
            case Trained(step):
                effects = self._trained(step, now)
            case Received(head):
                effects = self._received(event, now)
            case Gone(peer, head):
                effects = self._lost(head) if head else self._unreachable(peer)
            case SendDone(to, head, verdict):
                effects = self._sent(to, head, verdict)
            case Tick():
                effects = self._tick(now)
        return effects + self._advance(now)

    # --- the course of a step ----------------------------------------------------------------

    def _new_view(self, view: View, now: float) -> list[Effect]:  # noqa: ARG002
        if self.view and view.epoch.age <= self.view.epoch.age:
            return []
        self.view = view
        if self.phase is Phase.IDLE:
            self._seed(view.me)
            self._step = max(self._step, view.effective_step)
            x_0 = Lin(((1, X),))
            return [Set(COPY, x_0), Set(START, x_0), *self._train()]
        self._exchanges.forget()
        effects = self._exchanges.hang_up() if self._exchanges.call else []
        visit = self._exchanges.visit
        if visit and visit.initiator not in view.members:
            effects += self._part(averages=True)
        return effects

    def _train(self) -> list[Effect]:
        if self._step >= self.run.total_steps:
            self.phase = Phase.FINISHED
            return [Finished(self._step)]
        self.phase = Phase.TRAINING
        return [Train(self._step)]

    def _trained(self, step: int, now: float) -> list[Effect]:
        assert self.phase is Phase.TRAINING, f"trained {step} while {self.phase}"
        assert step == self._step, f"trained {step}, asked for {self._step}"
        self.phase = Phase.CALLING
        self._trained_at = self._paused_until = now
        self._partners.begin()
        return []

    def _advance(self, now: float) -> list[Effect]:
        """Call somebody, if it is time to."""
        if self.phase is not Phase.CALLING or self._exchanges.engaged or now < self._paused_until:
            return []
        view, deadline = self._view, now + self.run.deadline_s
        awake = self._partners.awake(view.neighbours, self._step)
        if not awake or now >= self._trained_at + self.run.deadline_s:
            return self._go_on(None, now)
        to = self._partners.pick(awake, self._step)
        if to:
            return self._exchanges.dial(view, self._step, to, OWN, deadline)
        self._partners.begin()
        self._paused_until = now + PAUSE_S * (1 + self._draw.below(PAUSE_PARTS) / PAUSE_PARTS)
        return []

    def _go_on(self, reply: Received | None, now: float) -> list[Effect]:
        """Form X_i <- avg + delta_i, without a reply X_i <- X_i + delta_i, and begin a new step."""
        effects: list[Effect]
        if reply:
            x_j = reply.messages[0]
            effects = [
                Observe("consensus_distance", Lin(((1, COPY), (-1, x_j)))),
                Set(START, Lin(((1, COPY), (1, X), (-2, START)), 2)),  # X_i/2 + x/2 - X_hat
                Set(COPY, Lin(((1, X), (1, x_j), (2, START)), 2)),  # avg + delta
            ]
        else:
            effects = [
                Set(START, Lin(((1, COPY), (-1, START)))),
                Set(COPY, Lin(((1, X), (1, START)))),
            ]
        effects += [Set(START, OWN), Set(X, OWN), self._averaged(now, complete=reply is not None)]
        self._step += 1
        return effects + self._train()

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
        deadline = now + self.run.deadline_s
        answer = self._exchanges.receive(event, self._view, self._step, OWN, deadline)
        return [*crossed, answer]

    def _lost(self, head: Head) -> list[Effect]:
        """A message that will not come: an offer is declined; without a reply the call failed."""
        if self.admit(head) is not Verdict.ACCEPTED:
            return []
        self._partners.heard(head.sender)
        if head.kind is Kind.OFFER:
            return [self._exchanges.decline(head, self._view, self._step)]
        return self._exchanges.hang_up(Outcome.PARTNER_ONLY if head.count else Outcome.NONE)

    def _unreachable(self, peer: PeerId) -> list[Effect]:
        effects: list[Effect] = []
        if self.phase is not Phase.IDLE:
            self._partners.unanswered(peer, self._step, unreachable=True)
        if self._exchanges.call and self._exchanges.call.to == peer:
            effects += self._exchanges.hang_up()
        if self._exchanges.visit and self._exchanges.visit.initiator == peer:
            effects += self._part(averages=True)
        return effects

    def _sent(self, to: PeerId, head: Head, verdict: Verdict | None) -> list[Effect]:
        call, visit = self._exchanges.call, self._exchanges.visit
        if call and (to, head) == (call.to, call.head):
            call.arrived = verdict in ARRIVED
            if verdict is None:
                self._partners.unanswered(to, self._step)
            return [] if call.arrived else self._exchanges.hang_up()
        if visit and (to, head) == (visit.initiator, visit.reply):
            return self._part(averages=verdict is None or verdict in ARRIVED)
        return []

    def _part(self, *, averages: bool) -> list[Effect]:
        """The end of an exchange at the partner: X_j <- avg, unless the initiator refused."""
        (x_i,) = self._exchanges.part().messages
        return [Set(COPY, Lin(((1, COPY), (1, x_i)), 2))] if averages else []

    def _tick(self, now: float) -> list[Effect]:
        call, visit = self._exchanges.call, self._exchanges.visit
        effects: list[Effect] = []
        if call and now >= call.deadline:
            self._partners.unanswered(call.to, self._step)
            effects += self._exchanges.hang_up()
        if visit and now >= visit.deadline:
            effects += [Cancel(visit.initiator, visit.reply), *self._part(averages=True)]
        return effects

    @property
    def _view(self) -> View:
        assert self.view is not None, "no topology yet"
        return self.view
