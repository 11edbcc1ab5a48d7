"""Messages on the lattice, over real connections: keys, refusals and another try."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from peer.algorithms.core import Epoch, Kind, Verdict
from peer.codec.edges import Key, Lattice, LatticeSetting, payload_bytes
from peer.codec.lattice import BLOCK, Encoder
from peer.transport.assembly import LatticeAssembly
from peer.transport.contract import Contract
from peer.transport.wire import header
from relayswarm.peer.v1 import peer_pb2 as pb

SETTING = LatticeSetting()
LARGE = 600_000


class Edge:
    """A sender and a receiver; each message is the last one moved a little, in all elements."""

    def __init__(self, tools: Any, elements: int, sections: int = 1, **contract: Any) -> None:
        contract = {"lattice": SETTING, "seed": 7, "sections": sections} | contract
        self.swarm = tools.Swarm(tools, elements, **contract)
        self.swarm.handler.keep = False  # what is kept takes up the edge's buffers
        self.tools = tools
        self.random = torch.Generator().manual_seed(3)
        self.vectors = torch.randn(sections, elements, generator=self.random)
        self.step = 0

    def send(self, moved: float = 0.01, **head: Any) -> tuple[Tensor, Verdict | None, set[str]]:
        """The next message: what came out, the verdict, and the formats it was sent in."""
        swarm, before = self.swarm, len(self.swarm.reports.of("bytes_out"))
        self.step += 1
        signs = torch.randint(2, self.vectors.shape, generator=self.random) * 2 - 1
        self.vectors = self.vectors + moved * signs
        posted = self.tools.head(step=self.step, **head)
        swarm.outbox.send("peer", posted, self.tools.Outgoing(*self.vectors))
        (*_, (_, _, verdict)) = swarm.reports.wait("sent", self.step)
        formats = [fmt for _, fmt in swarm.reports.of("bytes_out")[before:]]
        came = [torch.stack(v) for h, v in swarm.handler.of("received") if h == posted]
        return came[-1] if came else torch.empty(0), verdict, set(formats)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("elements", [1, 1000, BLOCK + 1, LARGE])
@pytest.mark.parametrize("sections", [1, 2])
def test_travels_with_a_quarter_of_the_bytes_once_both_ends_know_enough(
    tools: Any, elements: int, sections: int, rotated: bool
) -> None:
    setting = LatticeSetting(is_rotated=rotated)
    edge = Edge(tools, elements, sections, lattice=setting)
    for expected in ("float32", "float32", "lattice", "lattice", "lattice"):
        came, verdict, formats = edge.send()
        assert verdict is Verdict.ACCEPTED
        assert formats == {expected}
        assert torch.allclose(came, edge.vectors, rtol=0, atol=0.01)
    assert not edge.swarm.reports.of("retried") + edge.swarm.handler.of("refused")


@pytest.mark.parametrize("elements", [1000, LARGE])
@pytest.mark.parametrize(
    ("moved", "formats"),
    [(1.0, {"lattice"}), (100.0, {"lattice", "float32"})],
)
def test_one_that_moved_too_far_is_sent_again_and_never_averaged_wrongly(
    tools: Any, elements: int, moved: float, formats: set[str]
) -> None:
    edge = Edge(tools, elements)
    for _ in range(4):
        edge.send()
    came, verdict, sent_in = edge.send(moved)
    assert verdict is Verdict.ACCEPTED
    assert sent_in == formats
    assert torch.allclose(came, edge.vectors, rtol=0, atol=0.01)
    handler, reports = edge.swarm.handler, edge.swarm.reports
    failures = 2 if "float32" in formats else 1
    assert [verdict for verdict, _ in handler.of("refused")] == [Verdict.DECODE_FAILED] * failures
    assert [reason for _, reason in reports.of("retried")] == ["DECODE_FAILED"] * failures
    assert not handler.of("broken"), "it is still to come: nobody shall take it for lost"
    _, _, next_in = edge.send(moved)
    assert next_in == {"lattice"}, "the distance is known now"
    assert len(handler.of("refused")) == failures


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e35])
@pytest.mark.parametrize("elements", [1000, LARGE])
def test_what_fits_no_lattice_goes_in_full_precision_at_once(
    tools: Any, elements: int, value: float
) -> None:
    edge = Edge(tools, elements)
    for _ in range(3):
        edge.send()
    edge.vectors[0, -1] = value
    _, verdict, formats = edge.send()
    assert verdict is (Verdict.ACCEPTED if value == 1e35 else Verdict.NOT_FINITE)
    assert formats == {"lattice", "float32"}
    assert len(edge.swarm.reports.of("retried")) == 1


def test_what_a_half_precision_model_cannot_hold_is_not_finite() -> None:
    """On the lattice it is a number; in the model's own type it would be infinite."""
    key = torch.full((4,), 6e4)
    data = Encoder(8, 0, 1e4).encode(torch.full((4,), 7e4))
    buffer = torch.zeros(4, dtype=torch.float16)
    assembly = LatticeAssembly(buffer, Lattice(8, 0), Key((key,), 1.0, False))
    assert assembly.add(0, bytes(data)) is Verdict.NOT_FINITE


def test_a_receiver_that_has_lost_its_keys_asks_for_full_precision(tools: Any) -> None:
    edge = Edge(tools, 1000)
    for _ in range(3):
        edge.send()
    edge.swarm.kill()
    edge.swarm.restart()
    came, verdict, formats = edge.send()
    assert verdict is Verdict.ACCEPTED
    assert formats == {"lattice", "float32"}
    assert torch.equal(came, edge.vectors)


def test_a_new_epoch_begins_in_full_precision(tools: Any) -> None:
    edge = Edge(tools, 1000)
    for _ in range(3):
        edge.send()
    later = Epoch(1, 3, 3)
    assert [edge.send(epoch=later)[2] for _ in range(3)] == [{"float32"}, {"float32"}, {"lattice"}]
    assert not edge.swarm.handler.of("refused")


def test_counts_scale_keys_and_distances(tools: Any) -> None:
    """Sums of eight models, then of one, then of eight: none is refused."""
    edge = Edge(tools, 1000)
    mean = edge.vectors
    for count in (8, 8, 8, 1, 8, 2, 8):
        edge.vectors = mean * count
        came, verdict, _ = edge.send(moved=0.001 * count, count=count)
        assert verdict is Verdict.ACCEPTED
        assert torch.allclose(came, edge.vectors, rtol=0, atol=0.01)
    assert not edge.swarm.handler.of("refused")


def test_a_copy_makes_no_second_key(tools: Any) -> None:
    """The algorithm may not have looked at the first yet, and would admit it."""
    edge = Edge(tools, 1000)
    head = tools.head(step=1)
    message = tools.header(head, edge.swarm.contract)
    stub = tools.stub(edge.swarm.server.address)
    answers = [stub.RelayUnary(tools.unary(message, edge.vectors[0])).response for _ in range(2)]
    assert [a.verdict for a in answers] == [pb.VERDICT_ACCEPTED, pb.VERDICT_DUPLICATE]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, pb.VERDICT_DECODE_FAILED),  # there is no key
        ({"bits": 12}, pb.VERDICT_DECODE_FAILED),
        ({"bits": 0}, pb.VERDICT_DECODE_FAILED),
        ({"is_rotated": True}, pb.VERDICT_DECODE_FAILED),
    ],
)
def test_what_cannot_be_decoded_is_wanted_in_full_precision(
    tools: Any, changes: dict[str, Any], verdict: int
) -> None:
    edge = Edge(tools, 1000)
    lattice = dataclasses.replace(Lattice(8, 1), **changes)
    contract: Contract = edge.swarm.contract
    message = header(tools.head(), contract, [contract.span(Kind.RELAY, 0)], lattice=lattice)
    request = pb.RelayUnaryRequest(header=message, trailer=pb.Trailer(), data=b"")
    answer = tools.stub(edge.swarm.server.address).RelayUnary(request).response
    assert (answer.verdict, answer.wanted_bits) == (verdict, 0)


def test_a_run_without_the_lattice_refuses_it(tools: Any) -> None:
    edge = Edge(tools, 1000, lattice=None)
    contract: Contract = edge.swarm.contract
    message = header(tools.head(), contract, [contract.span(Kind.RELAY, 0)], lattice=Lattice(8, 1))
    request = pb.RelayUnaryRequest(header=message, trailer=pb.Trailer(), data=b"")
    answer = tools.stub(edge.swarm.server.address).RelayUnary(request).response
    assert answer.verdict == pb.VERDICT_DECODE_FAILED


# --- assembly -------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [0, 1, 3000, BLOCK + 17])
@pytest.mark.parametrize("chunk", [1, 1000, 100_000])
def test_chunks_may_end_anywhere(elements: int, chunk: int) -> None:
    if elements > BLOCK and chunk == 1:
        chunk = 7
    vectors = torch.linspace(-3, 3, 2 * elements).view(2, elements)
    key = Key(tuple(2 * vectors), 0.5, is_rotated=False)
    lattice = Lattice(8, 1, expected=(0.1, 0.2))
    payload = b"".join(lattice.encoder(k).encode(vector) for k, vector in enumerate(vectors))
    assert len(payload) == payload_bytes(lattice, 2, elements)
    assembly = LatticeAssembly(torch.full((2 * elements,), torch.nan), lattice, key)
    edges = [*range(0, len(payload), chunk), len(payload)]
    for start, stop in itertools.pairwise(edges):
        assert assembly.add(start, payload[start:stop]) is Verdict.ACCEPTED
    assert len(assembly.distances) == 2
    came = torch.stack(assembly.take())
    assert torch.allclose(came, vectors, rtol=0, atol=0.02)


def test_a_block_that_fails_ends_the_message_at_once() -> None:
    vector = torch.linspace(-3, 3, 3 * BLOCK)
    far = vector.clone()
    far[BLOCK] += 1e3
    lattice = Lattice(8, 1, expected=(0.1,))
    payload = bytes(lattice.encoder(0).encode(vector))
    assembly = LatticeAssembly(torch.empty_like(vector), lattice, Key((far,), 1.0, False))
    half = len(payload) // 3
    assert assembly.add(0, payload[:half]) is Verdict.ACCEPTED
    assert assembly.add(half, payload[half : 2 * half]) is Verdict.DECODE_FAILED
    assert assembly.wanted_bits == 16
