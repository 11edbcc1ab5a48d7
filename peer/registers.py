"""Evaluates linear combinations over registers and received messages, chunk by chunk, in torch.

Products are formed before they are added and the division comes last, in the order written, so
that the same effects give the same bits wherever they are evaluated and however they are cut
into chunks.

An outgoing sum is not formed when it is emitted but while it is sent. If one of its registers is
overwritten before that, the register is first copied once, for all who still read that value:
however many streams are slow, there are no more copies than steps of which messages are under way
(two, by rule R7).
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from peer.algorithms.core import LIVE, Coef, Head, Kind, Lin, Message, PeerId, Reg, Role, Set
from peer.codec import copy
from peer.codec.edges import Lattice
from peer.codec.quantizer import Quantizer

CHUNK_ELEMENTS = 1 << 18  # small enough for a cache; of less, Python's part is felt
CUDA_CHUNK_ELEMENTS = 1 << 22  # large enough to hide the launch of a kernel


class Registers:
    """One peer's vectors: the live model and what its algorithm declares, each of shape (d,).

    `parameters_end` is where parameters end and float buffers begin in the flat vector; CORRECTION
    registers stay zero from there on. `quantizer` is None in a run without one.
    """

    def __init__(
        self,
        live: Tensor,
        roles: Mapping[str, Role],
        parameters_end: int,
        quantizer: Quantizer | None = None,
    ) -> None:
        self.tensors = {LIVE: live, **{name: torch.zeros_like(live) for name in roles}}
        self._roles = dict(roles)
        self._parameters_end = parameters_end
        self._trees = 1
        self._quantizer = quantizer
        self._lattices: dict[str, Lattice | None] = {}  # of registers that were rounded to one
        self._readers: weakref.WeakSet[Outgoing] = weakref.WeakSet()
        self._copies: list[Tensor] = []  # that are read, or were
        self._writes: Counter[str] = Counter()
        self._mark = object()  # tells them from others of the same process
        self._guard = threading.Lock()  # readers are read by transport threads
        self.chunk = CUDA_CHUNK_ELEMENTS if live.is_cuda else CHUNK_ELEMENTS

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def split(self, trees: int) -> None:
        """From now on the model travels on so many trees: one, or two with half of it each."""
        self._trees = max(trees, 1)

    def span(self, tree: int | None) -> tuple[int, int]:
        """First element and end of what travels on `tree`; None means the whole vector."""
        elements = self.tensors[LIVE].numel()
        return (0, elements) if tree is None else span(elements, tree, self._trees)

    def set(self, reg: Reg, lin: Lin, tree: int | None = None) -> None:
        """Evaluate `lin` into `reg` on the coordinates of `tree`."""
        self.set_together((Set(reg, lin, tree),))

    def set_together(self, sets: Sequence[Set]) -> None:
        """Evaluate them one after the other: chunk by chunk, so that all is done to a chunk while
        it is in the processor's cache, readers' copies included."""
        for one in sets:
            self._writes[one.reg.name] += 1
        if self._readers:
            with self._guard:  # held until the copies are whole
                copies = self._copies_for_readers(one.reg.name for one in sets)
                if copies:
                    self._evaluate(sets, copies)
                    return
        self._evaluate(sets)

    def _evaluate(self, sets: Sequence[Set], copies: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        elements = self.tensors[LIVE].numel()
        for a in range(0, elements, self.chunk):
            b = min(a + self.chunk, elements)
            for kept, live in copies:
                copy(_cut(kept, a, b), _cut(live, a, b))
            for one in sets:
                start, stop = self.span(one.tree)
                if a < stop and b > start:
                    self._evaluate_chunk(one, max(a, start), min(b, stop), start)

    def _evaluate_chunk(self, one: Set, a: int, b: int, origin: int) -> None:
        name, lin = one.reg.name, one.lin
        out = _cut(self.tensors[name], a, b)
        in_place = all(ref != one.reg for _, ref in lin.terms[1:])  # else it is read once written
        value = evaluate(lin, self.tensors, a, b, origin, out if in_place else None)
        if value is not out:
            copy(out, value)
        if b > self._parameters_end and self._roles.get(name) is Role.CORRECTION:
            out[max(self._parameters_end - a, 0) :] = 0

    def quantize(self, reg: Reg, lin: Lin, to: PeerId, head: Head) -> None:
        """Evaluate Q(lin) into `reg`, for `to` to get with the message that `head` stands for."""
        assert self._quantizer is not None, "the run has no quantizer"
        self.set(reg, lin)
        target = self.tensors[reg.name]
        self._lattices[reg.name] = self._quantizer.round(target, target, to, head)

    def apart(self, lin: Lin) -> None:
        """Tell the quantizer how large `lin` is."""
        assert self._quantizer is not None, "the run has no quantizer"
        start, stop = self.span(None)
        largest = 0.0
        for a in range(start, stop, self.chunk):
            chunk = evaluate(lin, self.tensors, a, min(a + self.chunk, stop), start)
            largest = max(largest, float(chunk.abs().max()))
        self._quantizer.saw(largest)

    def lattice_of(self, lins: tuple[Lin, ...]) -> Lattice | None:
        """How a payload is best written, if it is a register that was rounded to the lattice."""
        match lins:
            case (Lin(((1, Reg(name)),), 1),):
                return self._lattices.get(name)
        return None

    def norm(self, lin: Lin, tree: int | None = None) -> float:
        """Euclidean norm of `lin` on the coordinates of `tree`."""
        start, stop = self.span(tree)
        edges = range(start, stop, self.chunk)
        chunks = (evaluate(lin, self.tensors, a, min(a + self.chunk, stop), start) for a in edges)
        return float(sum(float((chunk.double() ** 2).sum()) for chunk in chunks) ** 0.5)

    def outgoing(self, lins: tuple[Lin, ...], head: Head) -> Outgoing:
        """The payload of a message: the value that `lins` have now, read whenever it is sent."""
        start, stop = self.span(head.tree if head.kind is Kind.RELAY else None)
        outgoing = Outgoing(lins, dict(self.tensors), start, stop, self._guard)
        outgoing.lattice = self.lattice_of(lins)
        outgoing.value = self._value_of(lins, start, stop)
        self._readers.add(outgoing)
        return outgoing

    def _value_of(self, lins: tuple[Lin, ...], start: int, stop: int) -> object | None:
        """See `Outgoing.value`. Of messages nobody compares the contents."""
        refs = [ref for lin in lins for _, ref in lin.terms]
        if not all(isinstance(ref, Reg) for ref in refs):
            return None
        writes = tuple(self._writes[ref.name] for ref in refs if isinstance(ref, Reg))
        return (self._mark, lins, writes, start, stop)

    def about_to_write(self, name: str) -> None:
        """Copy `name` for those who still read it; to be called before anything overwrites it."""
        self._writes[name] += 1
        if self._readers:
            with self._guard:
                for kept, live in self._copies_for_readers((name,)):
                    copy(kept, live)

    def _copies_for_readers(self, names: Iterable[str]) -> list[tuple[Tensor, Tensor]]:
        """Under the guard: memory for copies of registers that are still read, from now on there,
        and what is to be copied to it."""
        copies = []
        for name in dict.fromkeys(names):
            live = self.tensors[name]
            readers = [reader for reader in self._readers if reader.reads(name, live)]
            if readers:
                kept = self._spare(live)
                for reader in readers:
                    reader.tensors[name] = kept
                copies.append((kept, live))
        return copies

    def _spare(self, live: Tensor) -> Tensor:
        """Memory for a copy. It is kept for the next one: to have it again from the system, page by
        page and zeroed, took longer than to copy."""
        read = {id(tensor) for reader in self._readers for tensor in reader.tensors.values()}
        for kept in self._copies:
            if id(kept) not in read:
                return kept
        self._copies.append(torch.empty_like(live))
        return self._copies[-1]


class Outgoing:
    """A message's payload: one section for each linear combination, each of `elements`."""

    def __init__(
        self,
        lins: tuple[Lin, ...],
        tensors: dict[str, Tensor],
        start: int,
        stop: int,
        guard: threading.Lock,
    ) -> None:
        self._lins = lins
        self.tensors = tensors
        self._device = tensors[LIVE].device
        self._start = start
        self._guard = guard
        self.sections = len(lins)
        self.elements = stop - start
        self.lattice: Lattice | None = None  # what it was rounded to
        self.value: object | None = None
        self._names = {ref.name for lin in lins for _, ref in lin.terms if isinstance(ref, Reg)}

    def reads(self, name: str, live: Tensor) -> bool:
        """Whether register `name`, stored in `live`, may still be read from here; not if this
        reader has been given its own copy of an earlier value."""
        return name in self._names and self.tensors.get(name) is live

    def read(self, section: int, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements [start, stop) of a section, as a new tensor or in `out`."""
        a, b = self._start + start, self._start + stop
        there = out if out is not None and out.device == self._device else None
        with self._guard:
            read = evaluate(self._lins[section], self.tensors, a, b, self._start, there)
        return read if out is None or there is out else out.copy_(read)

    def close(self) -> None:
        """It has been read; its registers and messages are let go."""
        self.tensors = {}
        self._lins = ()


def span(elements: int, tree: int, trees: int) -> tuple[int, int]:
    """First element and end of the part of a vector that travels on `tree` of `trees` (1 or 2)."""
    if trees == 1:
        return (0, elements)
    half = (elements + 1) // 2
    return (0, half) if tree == 0 else (half, elements)


def evaluate(
    lin: Lin,
    tensors: Mapping[str, Tensor],
    a: int,
    b: int,
    origin: int,
    out: Tensor | None = None,
) -> Tensor:
    """Elements [a, b) of `lin`, as a new tensor or in `out`; messages hold elements from `origin`
    on. `out`, shape (b - a,), has the vectors' dtype and device; of theirs it may only be the
    first term's."""
    total: Tensor | None = None
    is_own = False  # not a vector of somebody else's
    for coef, ref in lin.terms:
        part = _part(ref, tensors, a, b, origin)
        if total is None:
            is_own = coef != 1
            total = torch.mul(part, scalar(coef), out=out) if is_own else part
            continue
        scaled = part if coef == 1 else part * scalar(coef)
        total, is_own = torch.add(total, scaled, out=total if is_own else out), True
    if total is None:
        total = torch.zeros_like(tensors[LIVE][a:b])
    elif lin.divisor != 1:
        total = torch.div(total, scalar(lin.divisor), out=total if is_own else out)
    elif not is_own and out is None:
        return total.clone()
    if out is None or total is out:
        return total
    copy(out, total)
    return out


def _part(ref: Reg | Message, tensors: Mapping[str, Tensor], a: int, b: int, origin: int) -> Tensor:
    if isinstance(ref, Reg):
        return _cut(tensors[ref.name], a, b)
    return _cut(ref.payload, a - origin, b - origin)


def _cut(vector: Tensor, a: int, b: int) -> Tensor:
    """Elements [a, b); the vector itself if it is all of them: small vectors are cut in no time."""
    return vector if b - a == vector.numel() else vector[a:b]


def scalar(coef: Coef) -> float:
    return float(coef)
