"""Exchanges between two peers, one at a time: calls, answers, and what may go wrong.

The initiator calls with an OFFER; the partner answers with a REPLY; both messages carry the number
that the initiator gave the exchange. (Initiator, epoch, number) names it: an epoch's digest covers
incarnations. What belongs here is who is engaged with whom; what is averaged is the method's.

    Busy      A peer that calls or is called answers other offers BUSY, at their header. Two offers
              that were both admitted before either was in: the second gets an empty REPLY.
    Crossing  When two peers call each other the lower one's call stands; the other drops its own.
              Methods that block do without: both answer BUSY, and draw again.
    Held      A peer that is not ready to answer an offer may hold it, and is busy from then on.
    Broken    When a call breaks before the reply was sent, neither averages: the initiator hears
              that its own offer is gone, the partner that the offer it took in is.
    Outcomes  both averaged; the partner only; none. After the offer has arrived but no reply, the
              initiator reckons with "the partner only". A partner whose reply was not answered
              averages: the reply may have arrived, and the initiator must not be the only one; it
              reckons with "the partner only" too. Each side counts what it knows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from peer.algorithms.core import (
    Cancel,
    Effect,
    Head,
    Kind,
    Lin,
    PeerId,
    Received,
    Send,
    Verdict,
    View,
    peer_order,
)

ARRIVED = (Verdict.ACCEPTED, Verdict.DUPLICATE)


class Outcome(Enum):
    """Who averaged, as far as the one who counts can know."""

    BOTH = "both"
    PARTNER_ONLY = "partner_only"
    NONE = "none"


@dataclass
class Call:
    """This peer's own offer."""

    to: PeerId
    head: Head
    deadline: float
    arrived: bool = False


@dataclass(frozen=True)
class Visit:
    """Another peer's offer, which was answered."""

    offer: Received
    reply: Head
    deadline: float

    @property
    def initiator(self) -> PeerId:
        return self.offer.head.sender


@dataclass
class Exchanges:
    """Which exchange a peer is engaged in, if any.

    `outcomes` counts how its own calls ended, `visits` how the offers that it took in did.
    """

    yields: bool = True  # to the call of a lower peer that crosses its own
    call: Call | None = None
    visit: Visit | None = None
    held: Received | None = None  # an offer that was taken, but not answered yet
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    visits: Counter[Outcome] = field(default_factory=Counter)
    _number: int = 0  # of the last call
    _answered: dict[PeerId, int] = field(default_factory=dict)  # initiator -> last number

    @property
    def engaged(self) -> bool:
        return self.call is not None or self.visit is not None

    @property
    def initiator(self) -> PeerId | None:
        """Whose offer was answered, or is held."""
        offer = self.visit.offer if self.visit else self.held
        return offer.head.sender if offer else None

    def next_deadline(self) -> float | None:
        """When patience with the present exchange ends."""
        deadlines = [engagement.deadline for engagement in (self.call, self.visit) if engagement]
        return min(deadlines, default=None)

    def judge(self, view: View, head: Head) -> Verdict:
        """Verdict on an offer or reply that fits the topology. Reads only: see `admit`."""
        call = self.call
        if head.kind is Kind.REPLY:
            return Verdict.ACCEPTED if call and _answers(head, call) else Verdict.STALE_STEP
        if head.exchange <= self._answered.get(head.sender, 0):
            return Verdict.DUPLICATE
        if self.held and _same(head, self.held.head):
            return Verdict.DUPLICATE
        crossing = self.yields and call is not None and call.to == head.sender
        stands = crossing and peer_order(head.sender) < peer_order(view.me)
        busy = self.visit or self.held or (call and not stands)
        return Verdict.BUSY if busy else Verdict.ACCEPTED

    def is_broken_call(self, offer: Head) -> bool:
        """Whether that is this peer's own present call."""
        return self.call is not None and self.call.head == offer

    def is_broken_visit(self, offer: Head) -> bool:
        """Whether that is the present call of another peer."""
        taken = self.visit.offer if self.visit else self.held
        return taken is not None and _same(offer, taken.head)

    # --- as initiator ------------------------------------------------------------------------

    def dial(self, view: View, step: int, to: PeerId, lin: Lin, deadline: float) -> Send:
        """Call a peer with an offer of `lin`."""
        assert not self.engaged
        self._number += 1
        head = _head(view, step, Kind.OFFER, self._number)
        self.call = Call(to, head, deadline)
        return Send(to, head, (lin,))

    def hang_up(self, outcome: Outcome | None = None) -> list[Effect]:
        """End the call; without `outcome`: it failed, how can be told from what arrived."""
        call, self.call = self.call, None
        assert call is not None
        if outcome is not None:
            self.outcomes[outcome] += 1
            return []
        self.outcomes[Outcome.PARTNER_ONLY if call.arrived else Outcome.NONE] += 1
        return [Cancel(call.to, call.head)]

    # --- as partner --------------------------------------------------------------------------

    def receive(self, offer: Received, view: View, step: int, lin: Lin, deadline: float) -> Send:
        """Take an offer, and answer it with `lin`."""
        self.held = None
        self._answered[offer.head.sender] = offer.head.exchange
        reply = _head(view, step, Kind.REPLY, offer.head.exchange)
        self.visit = Visit(offer, reply, deadline)
        return Send(offer.head.sender, reply, (lin,))

    def decline(self, offer: Head, view: View, step: int) -> Send:
        """Answer an offer that was admitted but comes too late, or not at all: an empty reply."""
        self._answered[offer.sender] = offer.exchange
        self.visits[Outcome.NONE] += 1
        empty = _head(view, step, Kind.REPLY, offer.exchange, refuses=True)
        return Send(offer.sender, empty, ())

    def part(self, outcome: Outcome) -> Received:
        """End the visit, upon which this peer averages; returns the offer."""
        visit, self.visit = self.visit, None
        assert visit is not None
        self.visits[outcome] += 1
        return visit.offer

    def break_off(self) -> list[Effect]:
        """End a visit of which nothing came: the initiator refused the reply, or is gone."""
        if self.visit or self.held:
            self.visits[Outcome.NONE] += 1
        self.visit = self.held = None
        return []

    def forget(self) -> None:
        """A new epoch: numbers of another life of the same peer start from one again."""
        self._answered = {}


def _same(offer: Head, other: Head) -> bool:
    return (offer.sender, offer.exchange) == (other.sender, other.exchange)


def _answers(reply: Head, call: Call) -> bool:
    return reply.sender == call.to and reply.exchange == call.head.exchange


def _head(view: View, step: int, kind: Kind, number: int, *, refuses: bool = False) -> Head:
    return Head(
        sender=view.me,
        incarnation=view.members[view.me],
        epoch=view.epoch,
        step=step,
        kind=kind,
        count=0 if refuses else 1,
        lost=refuses,
        exchange=number,
    )
