"""The outbox: where a peer posts its messages to neighbours.

What belongs here: who sends to whom, and which messages the fault plan loses. How one neighbour is
reached, and when to try again, is the business of its `Sender`.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from peer.algorithms.core import Head, Kind, PeerId
from peer.codec.edges import Forecast
from peer.faults import FaultPlan
from peer.transport.contract import PAIR_KINDS, Contract, Handler, Outgoing, Reports
from peer.transport.initiator import Initiator
from peer.transport.letter import Letter
from peer.transport.sender import Sender
from peer.transport.visits import Visit, Visits
from relayswarm.net.security import PLAIN, Security


class Exchanges(NamedTuple):
    """What an outbox needs to take part in pairwise exchanges: who takes the replies to its offers,
    and the calls that its replies go to."""

    handler: Handler
    visits: Visits


class Outbox:
    """Sends messages of `me` to neighbours, each through a thread of its own.

    Every message that is posted is reported as sent exactly once, with a verdict or with None,
    and its payload is closed before. A message lost on purpose may be reported from within
    `send`. Counted bytes are those of messages, without what HTTP/2 and TCP add.
    """

    def __init__(
        self,
        me: PeerId,
        contract: Contract,
        plan: FaultPlan | None,
        reports: Reports,
        security: Security = PLAIN,
        exchanges: Exchanges | None = None,
    ) -> None:
        self._me = me
        self._exchanges = exchanges
        self._initiator = Initiator(exchanges.handler, contract, reports) if exchanges else None
        self._contract = contract
        self._plan = plan
        self._reports = reports
        self._security = security
        self._guard = threading.Lock()
        self._addresses: dict[PeerId, str] = {}
        self._senders: dict[PeerId, Sender] = {}
        self._closed = False

    def set_addresses(self, addresses: Mapping[PeerId, str]) -> None:
        """Where peers are, HOST:PORT. Messages to those not in it any more are given up."""
        with self._guard:
            self._addresses = dict(addresses)
            gone = [self._senders.pop(peer) for peer in self._senders.keys() - addresses.keys()]
            stay = list(self._senders.items())
        for sender in gone:
            sender.stop()
        for peer, sender in stay:
            sender.move(addresses[peer])

    def send(self, to: PeerId, head: Head, outgoing: Outgoing) -> None:
        """Post a message; too many in its slot (neighbour, kind, tree) drop the oldest (`BACKLOG`).

        A payload below 1 MiB is read here and now, a larger one while it streams.
        """
        plan = self._plan
        if plan is None or not plan.touches_messages:
            self._post(to, Letter(head, self._contract, outgoing))
            return
        fate = plan.fate(head.step, head.ordinal, head.tree, self._me, to)
        if not fate.lost:
            self._post_copies(to, head, outgoing, fate.delays_s)
            return
        outgoing.close()
        if plan.announced:
            self._post(to, Letter(head, self._contract, None))
            return
        visit = self._visit(to, head)
        if visit is not None:
            visit.silence()
        self._reports.sent(to, head, None)

    def cancel(self, to: PeerId, head: Head) -> None:
        """Stop sending that message, if it has not been answered yet."""
        visit = self._visit(to, head)
        if visit is not None:
            visit.cut()
        elif head.kind is Kind.OFFER and self._initiator:
            self._initiator.cancel(head)
        elif to in self._senders:
            self._senders[to].cancel(head)

    def settle(self, deadline_s: float) -> None:
        """Wait at most so long until all that was posted is answered or given up, so that it has
        been counted; go on sending whatever is not."""
        with self._guard:
            senders = list(self._senders.values())
        deadline = time.monotonic() + deadline_s
        for sender in senders:
            sender.wait_empty(deadline)
        if self._initiator:
            self._initiator.wait_idle(deadline)

    def close(self, deadline_s: float) -> None:
        """Wait at most so long for what is under way, give up the rest, end all threads.

        Peers that do not answer are not waited for.
        """
        with self._guard:
            self._closed = True
            senders = list(self._senders.values())
        for sender in senders:
            sender.drain()
        deadline = time.monotonic() + deadline_s
        if self._initiator:
            self._initiator.wait_idle(deadline)
            self._initiator.stop()
        for sender in senders:
            sender.wait_empty(deadline)
            sender.stop()
        for sender in senders:
            sender.join()

    def _post_copies(
        self, to: PeerId, head: Head, outgoing: Outgoing, delays_s: Sequence[float]
    ) -> None:
        if head.kind in PAIR_KINDS:
            delays_s = delays_s[:1]  # a call is not made twice
        shared = SharedOutgoing(outgoing, len(delays_s))
        for number, delay_s in enumerate(delays_s):
            self._post(to, Letter(head, self._contract, shared, delay_s, extra=number > 0))

    def _post(self, to: PeerId, letter: Letter) -> None:
        if letter.head.kind is Kind.REPLY:
            self._reply(to, letter)
            return
        sender = self._sender(to)
        if sender is None:
            letter.close()
            if not letter.extra:
                self._reports.sent(to, letter.head, None)
        elif letter.head.kind is Kind.OFFER:
            assert self._initiator is not None, "this peer takes no part in exchanges"
            self._initiator.call(sender, letter)
        else:
            sender.post(letter)

    def _reply(self, to: PeerId, letter: Letter) -> None:
        """Answer the initiator's call, if it has not ended."""
        assert self._exchanges is not None, "this peer takes no part in exchanges"
        visit = self._visit(to, letter.head)
        if visit is None or not visit.reply(letter, self._reports):
            letter.close()
            offer = dataclasses.replace(letter.head, sender=to, kind=Kind.OFFER)
            self._exchanges.handler.broken(offer)
            self._reports.sent(to, letter.head, None)

    def _visit(self, initiator: PeerId, head: Head) -> Visit | None:
        """Of the reply with this head, if it is one, and its call is not over."""
        if head.kind is not Kind.REPLY or self._exchanges is None:
            return None
        return self._exchanges.visits.of(initiator, head)

    def _sender(self, to: PeerId) -> Sender | None:
        with self._guard:
            sender = self._senders.get(to)
            if sender is None and not self._closed:
                forecast = Forecast(self._contract.lattice, self._contract.seed, to)
                sender = self._senders[to] = Sender(to, self._reports, self._security, forecast)
                if to in self._addresses:
                    sender.move(self._addresses[to])
            return sender


class SharedOutgoing:
    """A payload for several letters: closed when the last of them has closed it."""

    def __init__(self, outgoing: Outgoing, readers: int) -> None:
        self.sections = outgoing.sections
        self.elements = outgoing.elements
        self.lattice = outgoing.lattice
        self._outgoing = outgoing
        self._readers = readers
        self._guard = threading.Lock()

    def read(self, section: int, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements [start, stop) of a section, as a new tensor or in `out`."""
        return self._outgoing.read(section, start, stop, out)

    def close(self) -> None:
        """One of the letters reads no more."""
        with self._guard:
            self._readers -= 1
            last = self._readers == 0
        if last:
            self._outgoing.close()
