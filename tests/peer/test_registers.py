"""Linear combinations in torch: exact, however they are cut; read as they were when emitted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peer.algorithms.core import LIVE, Epoch, Head, Kind, Lin, Message, Reg, Role, Set
from peer.registers import Registers, evaluate, span

X, OLD, FIX = Reg(LIVE), Reg("old"), Reg("correction")
ROLES = {"old": Role.MODEL, "correction": Role.CORRECTION}
D = 11
PATIENCE_S = 20.0

COEFS = st.integers(-4, 4) | st.floats(-2, 2) | st.fractions(-2, 2, max_denominator=7)
DIVISORS = st.integers(1, 7) | st.sampled_from([0.5, Fraction(3, 4)])


def head(kind: Kind = Kind.RELAY, tree: int = 0) -> Head:
    return Head("peer-1", 1, Epoch(1, 1), 0, kind, tree=tree)


def message(payload: Tensor, tree: int = 0) -> Message:
    return Message(head(tree=tree), 0, payload)


def make(live: Tensor | None = None, buffers: int = 0, chunk: int = 3) -> Registers:
    """Registers of `D` elements, of which the last `buffers` are float buffers."""
    live = torch.arange(1.0, D + 1) if live is None else live
    registers = Registers(live, ROLES, live.numel() - buffers)
    registers.chunk = chunk
    return registers


# --- arithmetic -----------------------------------------------------------------------------------


def test_registers_start_as_zeros_and_the_live_one_is_the_model() -> None:
    live = torch.ones(D)
    registers = make(live)
    assert registers[LIVE] is live
    assert not registers["old"].any()
    assert not registers["correction"].any()


def test_a_combination_multiplies_then_adds_and_divides_last() -> None:
    """In single precision (0.1 x + y) / 3 has one result in that order only."""
    registers = make(torch.full((D,), 0.7))
    y = torch.full((D,), 1.3)
    registers.set(X, Lin(((0.1, X), (1, message(y))), divisor=3))
    expected = (torch.tensor(0.7) * 0.1 + torch.tensor(1.3)) / 3
    assert torch.equal(registers[LIVE], expected.expand(D))


def test_coefficients_may_be_fractions() -> None:
    registers = make()
    registers.set(OLD, Lin(((Fraction(1, 2), X),), divisor=Fraction(1, 4)))
    assert torch.equal(registers["old"], 2 * registers[LIVE])


def test_the_empty_combination_is_zero() -> None:
    registers = make()
    registers.set(X, Lin(()))
    assert not registers[LIVE].any()


def test_a_register_may_stand_in_its_own_combination() -> None:
    registers = make()
    before = registers[LIVE].clone()
    registers.set(X, Lin(((1, X), (1, X)), divisor=4))
    assert torch.equal(registers[LIVE], before / 2)


@given(
    coefs=st.lists(COEFS, min_size=1, max_size=4),
    divisor=DIVISORS,
    chunk=st.integers(1, D + 2),
    seed=st.integers(0, 100),
)
def test_how_it_is_cut_into_chunks_makes_no_difference(
    coefs: list[Any], divisor: Any, chunk: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(D, generator=generator) for _ in coefs]
    drawn = [vector.clone() for vector in vectors]
    lin = Lin(tuple((c, message(v)) for c, v in zip(coefs, vectors, strict=True)), divisor)
    registers = make(chunk=chunk)
    registers.set(X, lin)
    whole = evaluate(lin, {LIVE: registers[LIVE]}, 0, D, 0)
    assert torch.equal(registers[LIVE], whole)
    outgoing = registers.outgoing((lin,), head())
    parts = [outgoing.read(0, a, min(a + chunk, D)) for a in range(0, D, chunk)]
    assert torch.equal(torch.cat(parts), whole)
    there = torch.full((D + 1,), 7.0)
    for a in range(0, D, chunk):
        out = there[a : min(a + chunk, D)]
        assert outgoing.read(0, a, min(a + chunk, D), out) is out
    assert torch.equal(there[:D], whole)
    assert there[D] == 7.0
    assert all(torch.equal(v, w) for v, w in zip(vectors, drawn, strict=True))  # only read
    exact = [
        sum(Fraction(c) * Fraction(float(v[k])) for c, v in zip(coefs, vectors, strict=True))
        / Fraction(divisor)
        for k in range(D)
    ]
    assert torch.allclose(
        whole.double(),
        torch.tensor([float(value) for value in exact]).double(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_norm_is_euclidean_and_in_double_precision() -> None:
    registers = make(torch.full((D,), 1e30))
    assert registers.norm(Lin(((3, X),))) == pytest.approx(3e30 * D**0.5)
    assert registers.norm(Lin(((1, X), (-1, X)))) == 0


# --- halves ---------------------------------------------------------------------------------------


@given(elements=st.integers(1, 50))
def test_two_trees_share_the_vector_without_gap_or_overlap(elements: int) -> None:
    """The first half is the longer one: [0, ceil(d/2))."""
    (a, b), (c, d) = span(elements, 0, 2), span(elements, 1, 2)
    assert (a, b, c, d) == (0, (elements + 1) // 2, b, elements)
    assert span(elements, 0, 1) == (0, elements)


@pytest.mark.parametrize(("tree", "start", "stop"), [(0, 0, 6), (1, 6, 11)])
def test_a_tree_sets_and_measures_its_half_alone(tree: int, start: int, stop: int) -> None:
    registers = make()
    registers.split(2)
    before = registers[LIVE].clone()
    payload = torch.full((stop - start,), 5.0)
    lin = Lin(((1, message(payload, tree)),))
    registers.set(X, lin, tree)
    assert torch.equal(registers[LIVE][start:stop], payload)
    assert torch.equal(registers[LIVE][:start], before[:start])
    assert torch.equal(registers[LIVE][stop:], before[stop:])
    assert registers.norm(lin, tree) == pytest.approx(5 * (stop - start) ** 0.5)


@pytest.mark.parametrize(("tree", "start", "stop"), [(0, 0, 6), (1, 6, 11)])
def test_a_message_carries_its_trees_half(tree: int, start: int, stop: int) -> None:
    registers = make()
    registers.split(2)
    relayed = message(torch.ones(stop - start), tree)
    outgoing = registers.outgoing((Lin(((1, X), (1, relayed))),), head(tree=tree))
    assert (outgoing.sections, outgoing.elements) == (1, stop - start)
    got = outgoing.read(0, 0, stop - start)
    assert torch.equal(got, registers[LIVE][start:stop] + 1)


def test_gossip_carries_the_whole_vector_also_where_there_are_two_trees() -> None:
    registers = make()
    registers.split(2)
    lins = (Lin(((1, X),)), Lin(((2, X),)))
    outgoing = registers.outgoing(lins, head(Kind.GOSSIP))
    assert (outgoing.sections, outgoing.elements) == (2, D)
    assert torch.equal(outgoing.read(1, 2, 5), 2 * registers[LIVE][2:5])


# --- buffers --------------------------------------------------------------------------------------


def test_corrections_stay_zero_on_float_buffers() -> None:
    """A correction could make a variance negative."""
    registers = make(buffers=4)
    registers.set(FIX, Lin(((1, X),)))
    registers.set(OLD, Lin(((1, X),)))
    assert torch.equal(registers["correction"][: D - 4], registers[LIVE][: D - 4])
    assert not registers["correction"][D - 4 :].any()
    assert torch.equal(registers["old"], registers[LIVE])


# --- copy on write --------------------------------------------------------------------------------

Overwrite = Callable[[Registers], None]


def by_set(registers: Registers) -> None:
    registers.set(X, Lin(()))


def by_training(registers: Registers) -> None:
    registers.about_to_write(LIVE)
    registers[LIVE].zero_()


@pytest.mark.parametrize("overwrite", [by_set, by_training])
def test_a_slow_reader_gets_the_value_from_when_it_was_emitted(overwrite: Overwrite) -> None:
    registers = make()
    before = registers[LIVE].clone()
    outgoing = registers.outgoing((Lin(((2, X),)),), head())
    first = outgoing.read(0, 0, 4)
    overwrite(registers)
    rest = outgoing.read(0, 4, D)
    assert torch.equal(torch.cat([first, rest]), 2 * before)
    assert not registers[LIVE].any()


def test_all_slow_readers_share_one_copy() -> None:
    registers = make()
    readers = [registers.outgoing((Lin(((k, X),)),), head()) for k in range(1, 4)]
    by_set(registers)
    (copy,) = {id(reader.tensors[LIVE]) for reader in readers}
    assert copy != id(registers[LIVE])
    by_set(registers)  # they have got their copy: no other is made
    assert {id(reader.tensors[LIVE]) for reader in readers} == {copy}


def test_nothing_is_copied_that_nobody_reads_any_more() -> None:
    registers = make()
    closed, other = (registers.outgoing((Lin(((1, reg),)),), head()) for reg in (X, OLD))
    closed.close()
    by_set(registers)
    assert closed.tensors == {}
    assert other.tensors[LIVE] is registers[LIVE]  # which it does not read


def test_payloads_say_whether_they_are_equal() -> None:
    registers = make()

    def value(*lins: Lin, tree: int | None = None) -> object:
        sent = head() if tree is not None else head(Kind.GOSSIP)
        return registers.outgoing(lins or (Lin(((1, X),)),), sent).value

    first = value()
    assert first is not None
    assert first == value()
    assert first != value(Lin(((2, X),)))
    assert first != value(Lin(((1, OLD),)))
    registers.set(OLD, Lin(((1, X),)))
    assert first == value()
    registers.set(X, Lin(((1, X),)))
    assert first != value()
    registers.split(2)
    assert value() != value(tree=0)
    assert value(Lin(((1, X), (1, message(torch.zeros(D)))))) is None
    assert (
        make().outgoing((Lin(((1, X),)),), head(Kind.GOSSIP)).value
        != make().outgoing((Lin(((1, X),)),), head(Kind.GOSSIP)).value
    )


def test_a_value_emitted_after_a_write_is_of_after_it() -> None:
    registers = make()
    earlier = registers.outgoing((Lin(((1, X),)),), head())
    by_set(registers)
    later = registers.outgoing((Lin(((1, X),)),), head())
    registers.set(X, Lin(((1, message(torch.full((D,), 9.0))),)))
    assert torch.equal(earlier.read(0, 0, D), torch.arange(1.0, D + 1))
    assert not later.read(0, 0, D).any()


def test_readers_in_other_threads_never_see_a_write() -> None:
    """Transport threads read chunk by chunk while the core thread goes on writing."""
    size, rounds = 3000, 60
    registers = make(torch.zeros(size), chunk=256)
    started = threading.Semaphore(0)
    mixed: list[int] = []

    def read(outgoing: Any, expected: int) -> None:
        first = outgoing.read(0, 0, 100)
        started.release()
        rest = [outgoing.read(0, a, min(a + 100, size)) for a in range(100, size, 100)]
        if not torch.equal(torch.cat([first, *rest]), torch.full((size,), float(expected))):
            mixed.append(expected)
        outgoing.close()

    threads = []
    for step in range(rounds):
        outgoing = registers.outgoing((Lin(((1, X),)),), head())
        threads.append(threading.Thread(target=read, args=(outgoing, step)))
        threads[-1].start()
        assert started.acquire(timeout=PATIENCE_S)  # it is in the middle of reading
        registers.set(X, Lin(((1, X), (1, message(torch.ones(size))))))
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not mixed
    assert torch.equal(registers[LIVE], torch.full((size,), float(rounds)))


# --- several at once ------------------------------------------------------------------------------


@given(chunk=st.integers(1, D + 2), trees=st.integers(1, 2), buffers=st.integers(0, 4))
def test_registers_set_together_end_as_if_set_one_after_the_other(
    chunk: int, trees: int, buffers: int
) -> None:
    """Also where a later one needs what an earlier one has set, readers wait, and a half of the
    vector has a mean of its own."""
    generator = torch.Generator().manual_seed(chunk)
    live = torch.randn(D, generator=generator)
    sets = [
        Set(FIX, Lin(((1, X), (-1, OLD)))),
        *(mean_with_a_message(tree, trees, generator) for tree in range(trees)),
        Set(OLD, Lin(((2, X), (1, FIX)))),
        Set(X, Lin(((1, OLD), (1, X)))),
    ]
    together, apart = (make(live.clone(), buffers, chunk) for _ in range(2))
    readers = []
    for registers in (together, apart):
        registers.split(trees)
        readers.append(registers.outgoing((Lin(((1, X), (1, OLD))),), head(Kind.GOSSIP)))
    together.set_together(sets)
    for one in sets:
        apart.set(one.reg, one.lin, one.tree)
    for name in (LIVE, *ROLES):
        assert torch.equal(together[name], apart[name])
    for reader in readers:
        assert torch.equal(reader.read(0, 0, D), live)


def mean_with_a_message(tree: int, trees: int, generator: torch.Generator) -> Set:
    start, stop = span(D, tree, trees)
    payload = torch.randn(stop - start, generator=generator)
    return Set(X, Lin(((1, X), (1, message(payload, tree))), 2), tree)


def test_copies_are_made_in_the_same_memory_again() -> None:
    """Of models, memory from the system takes longer than the copying."""
    registers = make()
    places = []
    for _ in range(3):
        readers = [registers.outgoing((Lin(((1, reg),)),), head()) for reg in (X, OLD)]
        registers.set_together([Set(OLD, Lin(((2, X),))), Set(X, Lin(()))])
        copies = [readers[0].tensors[LIVE], readers[1].tensors["old"]]
        places.append({copy.data_ptr() for copy in copies})
        assert len(places[-1]) == 2
        for reader in readers:
            reader.close()
    assert places[0] == places[1] == places[2]


def test_a_copy_that_is_read_is_not_written_over() -> None:
    registers = make()
    expected = []
    readers = []
    for k in range(4):
        expected.append(registers[LIVE].clone())
        readers.append(registers.outgoing((Lin(((1, X),)),), head()))
        registers.set(X, Lin(((k + 2, X),)))
    for value, reader in zip(expected, readers, strict=True):
        assert torch.equal(reader.read(0, 0, D), value)
