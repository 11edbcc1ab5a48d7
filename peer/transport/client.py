"""The outbox: where a peer posts its messages to neighbours.

What belongs here: who sends to whom, and which messages the fault plan loses. How one neighbour is
reached, and when to try again, is the business of its `Sender`.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from peer.algorithms.core import Head, Kind, PeerId
from peer.codec.edges import Forecast
from peer.faults import FaultPlan
from peer.transport.account import Account, CommonDigest
from peer.transport.collectors import CollectedWay, Collectors
from peer.transport.contract import (
    PAIR_KINDS,
    Contract,
    Handler,
    Ledger,
    Outgoing,
    Parcel,
    Reports,
)
from peer.transport.initiator import Initiator
from peer.transport.letter import Letter
from peer.transport.link import Link, Way
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
    and its payload is closed before. A message lost on purpose, or to a peer without an address,
    may be reported from within `send`. Counted bytes are those of messages, without what HTTP/2
    and TCP add.
    """

    def __init__(
        self,
        me: PeerId,
        contract: Contract,
        plan: FaultPlan | None,
        reports: Reports,
        security: Security = PLAIN,
        exchanges: Exchanges | None = None,
        collectors: Collectors | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._me = me
        self._exchanges = exchanges
        self._initiator = Initiator(exchanges.handler, contract, reports) if exchanges else None
        self._contract = contract
        self._plan = plan
        self._reports = reports
        self._security = security
        self._collectors = collectors or Collectors()
        self._ledger = ledger
        self._last_value: tuple[object, CommonDigest | None] = (None, None)  # under the guard
        self._guard = threading.Lock()
        self._addresses: dict[PeerId, str] = {}
        self._senders: dict[PeerId, Sender] = {}
        self._closed = False

    def set_addresses(self, addresses: Mapping[PeerId, str]) -> None:
        """Where peers are, HOST:PORT, '' for those that can only dial out. Messages to any others,
        such as those of an epoch that is coming to its end here, are given up."""
        with self._guard:
            self._addresses = dict(addresses)
            gone = [self._senders.pop(peer) for peer in self._senders.keys() - addresses.keys()]
            stay = list(self._senders.items())
        for sender in gone:
            sender.stop()
        for peer, sender in stay:
            sender.move(addresses[peer])

    @property
    def down(self) -> frozenset[PeerId]:
        """The peers that have an address, and cannot be reached there."""
        with self._guard:
            return frozenset(peer for peer, sender in self._senders.items() if sender.is_down)

    def send(self, to: PeerId, head: Head, outgoing: Outgoing | None) -> None:
        """Post a message; too many in its slot (neighbour, kind, tree) drop the oldest (`BACKLOG`).

        A payload below 1 MiB is read here and now, a larger one while it streams. With None it is
        announced that there is none, as of a message that is lost.
        """
        plan = self._plan
        if plan is None or outgoing is None or not plan.touches_messages:
            self._post(to, self._letter(to, head, outgoing))
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
        elif sender := self._senders.get(to):  # in one look: a view may let it go at any time
            sender.cancel(head)

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
        self._collectors.close()

    def _post_copies(
        self, to: PeerId, head: Head, outgoing: Outgoing, delays_s: Sequence[float]
    ) -> None:
        if head.kind in PAIR_KINDS:
            delays_s = delays_s[:1]  # a call is not made twice
        shared = SharedOutgoing(outgoing, len(delays_s))
        for number, delay_s in enumerate(delays_s):
            self._post(to, self._letter(to, head, shared, delay_s, extra=number > 0))

    def _letter(
        self,
        to: PeerId,
        head: Head,
        outgoing: Outgoing | None,
        delay_s: float = 0,
        extra: bool = False,
    ) -> Letter:
        known_by = "certificate" if self._security.knows_both_ends else "name"
        epoch = f"{head.epoch.term}.{head.epoch.number}"
        parcel = Parcel(to, known_by, head.kind.value, epoch, head.step, attempt=0, bytes=0)
        account = Account(self._ledger, parcel, self._common_digest(head, outgoing))
        return Letter(head, self._contract, outgoing, delay_s, extra, account)

    def _common_digest(self, head: Head, outgoing: Outgoing | None) -> CommonDigest | None:
        """Of this payload, and of the one before it if that is equal."""
        if self._ledger is None or outgoing is None or outgoing.value is None:
            return None
        value = (outgoing.value, self._contract.format_of(head.kind))
        with self._guard:
            last, digest = self._last_value
            if value != last or digest is None:
                digest = CommonDigest(self._ledger.new_digest())
                self._last_value = value, digest
        return digest

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

    def _way(self, to: PeerId, address: str) -> Way:
        if address:
            return Link(address, self._security, to)
        return CollectedWay(self._collectors, to)

    def _sender(self, to: PeerId) -> Sender | None:
        with self._guard:
            sender, address = self._senders.get(to), self._addresses.get(to)
            if sender is None and address is not None and not self._closed:
                forecast = Forecast(self._contract.lattice, self._contract.seed, to)
                way_to = partial(self._way, to)
                sender = self._senders[to] = Sender(to, self._reports, way_to, forecast)
                sender.move(address)
            return sender


class SharedOutgoing:
    """A payload for several letters: closed when the last of them has closed it."""

    def __init__(self, outgoing: Outgoing, readers: int) -> None:
        self.sections = outgoing.sections
        self.elements = outgoing.elements
        self.lattice = outgoing.lattice
        self.value = outgoing.value
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
