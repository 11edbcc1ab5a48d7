"""Every payload that leaves is in the ledger before its last byte is, or stays here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.audit import Audit
from peer.codec import Format, encode
from peer.codec.edges import LatticeSetting
from peer.transport.account import Account, CommonDigest, UnrecordedError
from peer.transport.contract import Parcel
from peer.transport.wire import chunk_bytes

PARCEL = Parcel("peer-1", "name", "relay", "1.1", 3, 0, 0)
PARTS = (b"one", b"two", b"three")


class Ledger:
    """Takes so many entries."""

    def __init__(self, room: int = 99) -> None:
        self.entries: list[tuple[int, int, str | None]] = []
        self.room = room

    def new_digest(self) -> hashlib._Hash:
        return hashlib.sha256()

    def leaving(self, parcel: Parcel, digest: str | None) -> bool:
        if len(self.entries) == self.room:
            return False
        self.entries.append((parcel.bytes, parcel.attempt, digest))
        return True


def chunks() -> Iterator[bytes]:
    offset = 0
    for part in PARTS:
        yield chunk_bytes(offset, part)
        offset += len(part)


def test_a_stream_is_entered_before_its_first_chunk_and_before_its_last() -> None:
    ledger = Ledger()
    whole = hashlib.sha256(b"".join(PARTS)).hexdigest()
    seen = [len(ledger.entries) for _ in Account(ledger, PARCEL).chunks(chunks(), 11, 2)]
    assert seen == [1, 1, 2]
    assert ledger.entries == [(11, 2, None), (11, 2, whole)]


def test_what_goes_in_one_piece_is_entered_once() -> None:
    ledger = Ledger()
    Account(ledger, PARCEL).whole(b"one", 0)
    assert list(Account(ledger, PARCEL).chunks(iter([chunk_bytes(0, b"one")]), 3, 0))
    assert ledger.entries == [(3, 0, hashlib.sha256(b"one").hexdigest())] * 2


@pytest.mark.parametrize(("room", "sent"), [(0, 0), (1, 2)])
def test_what_cannot_be_entered_stays(room: int, sent: int) -> None:
    account = Account(Ledger(room), PARCEL)
    assert len(list(account.chunks(chunks(), 11, 0))) == sent


def test_a_small_message_that_cannot_be_entered_stays() -> None:
    with pytest.raises(UnrecordedError):
        Account(Ledger(0), PARCEL).whole(b"one", 0)


def test_without_a_ledger_all_is_sent() -> None:
    assert len(list(Account(None, PARCEL).chunks(chunks(), 11, 0))) == 3


class Counting:
    """A digest that knows how much it was given."""

    def __init__(self) -> None:
        self.digest, self.bytes = hashlib.sha256(), 0

    def update(self, data: bytes) -> None:
        self.digest.update(data)
        self.bytes += len(data)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


def test_equal_streams_are_digested_once_whoever_is_first() -> None:
    """Three of them: one breaks off, and the lead changes."""
    ledger, counting = Ledger(), Counting()
    common = CommonDigest(counting)
    whole = hashlib.sha256(b"".join(PARTS)).hexdigest()
    first, second, third = (
        Account(ledger, PARCEL, common).chunks(chunks(), 11, 0, is_plain=True) for _ in range(3)
    )
    next(first)
    next(first)
    first.close()
    next(second)
    assert len(list(third)) == 3
    assert len(list(second)) == 2
    Account(ledger, PARCEL, common).whole(b"".join(PARTS), 1, is_plain=True)
    assert [digest for _, _, digest in ledger.entries if digest] == [whole] * 3
    assert counting.bytes == 11


def test_what_is_written_for_one_receiver_has_a_digest_of_its_own() -> None:
    ledger, common = Ledger(), CommonDigest(hashlib.sha256())
    Account(ledger, PARCEL, common).whole(b"one", 0, is_plain=True)
    Account(ledger, PARCEL, common).whole(b"two", 0, is_plain=False)
    found = [digest for _, _, digest in ledger.entries]
    assert found == [hashlib.sha256(part).hexdigest() for part in (b"one", b"two")]


@pytest.mark.parametrize("elements", [1000, 700_000])
@pytest.mark.parametrize("wire_format", [Format.FLOAT32, Format.BFLOAT16])
def test_neighbours_that_get_the_same_are_recorded_with_the_bytes_that_they_get(
    tools: Any, tmp_path: Path, elements: int, wire_format: Format
) -> None:
    """And the next payload, which is another, with its own."""
    made: list[Counting] = []
    audit = Audit(tmp_path / "audit.jsonl", "sha256")
    audit._make_digest = lambda: made.append(Counting()) or made[-1]
    contract = tools.contract(elements, wire_format=wire_format)
    reports, handlers = tools.Reports(), [tools.Handler() for _ in range(2)]
    outbox = tools.outbox(reports, contract, ledger=audit)
    servers = [tools.server(handler, contract) for handler in handlers]
    peers = {f"peer-{k}": server.address for k, server in enumerate(servers)}
    outbox.set_addresses(peers)
    vectors = [torch.randn(elements) for _ in range(2)]
    for step, vector in enumerate(vectors):
        for peer in peers:
            outgoing = tools.Outgoing(vector)
            outgoing.value = step
            outbox.send(peer, tools.head(step), outgoing)
        reports.wait("sent", 2 * (step + 1))
    records = [json.loads(line) for line in audit.path.read_text().splitlines()]
    sent = sorted((r["receiver"], r["step"], r["payload"]) for r in records if r["event"] == "sent")
    digests = [hashlib.sha256(bytes(encode(vector, wire_format))).hexdigest() for vector in vectors]
    assert sent == [(peer, step, digests[step]) for peer in peers for step in (0, 1)]
    for handler in handlers:
        got = {head.step: vector for head, (vector,) in handler.of("received")}
        for step, vector in enumerate(vectors):
            assert torch.equal(got[step], vector.to(wire_format.dtype).to(torch.float32))
    assert sum(digest.bytes for digest in made) == 2 * elements * wire_format.itemsize
    audit.close()


def test_on_the_lattice_each_neighbour_gets_and_is_recorded_with_bytes_of_its_own(
    tools: Any, tmp_path: Path
) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    contract = tools.contract(1000, lattice=LatticeSetting(), seed=7)
    reports = tools.Reports()
    outbox = tools.outbox(reports, contract, ledger=audit)
    servers = {f"peer-{k}": tools.server(tools.Handler(), contract) for k in range(2)}
    outbox.set_addresses({peer: server.address for peer, server in servers.items()})
    vector = torch.randn(1000)
    for step in range(1, 5):
        vector = vector + 0.01
        for peer in servers:
            outgoing = tools.Outgoing(vector)
            outgoing.value = step
            outbox.send(peer, tools.head(step), outgoing)
        reports.wait("sent", 2 * step)
    audit.close()
    records = [json.loads(line) for line in audit.path.read_text().splitlines()]
    digests = {(r["step"], r["bytes"]): set() for r in records}
    for record in records:
        digests[record["step"], record["bytes"]].add(record["payload"])
    on_the_lattice = {step: len(found) for (step, size), found in digests.items() if size < 4000}
    plain = {step: len(found) for (step, size), found in digests.items() if size == 4000}
    assert on_the_lattice == {3: 2, 4: 2}
    assert plain == {1: 1, 2: 1}
