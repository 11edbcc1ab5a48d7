"""The hands of a simulated peer that computes nothing: they write down what there is to compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from peer.algorithms.core import Head, Kind, Lin, Message, PeerId, Reg, Set, Train, Trained
from peer.simulator.counts import Count, Formula, formula_of
from peer.simulator.plan import Recorder, Row


class Symbol:
    """One vector of a message: its row in each part, None where it has no coordinates."""

    __slots__ = ("_elements", "rows")

    def __init__(self, rows: tuple[Row | None, ...], elements: int) -> None:
        self.rows = rows
        self._elements = elements

    def numel(self) -> int:
        """Elements of the vector that it stands for."""
        return self._elements


class SymbolicVectors:
    """One peer's registers as rows of a table: `peer.driver.Vectors`. `widths` are the elements of
    each part. While the recorder says so, numbers are recorded as what they follow from."""

    def __init__(self, recorder: Recorder, peer: int, widths: tuple[int, ...]) -> None:
        self._recorder = recorder
        self._peer = peer
        self._widths = widths
        self._all = range(len(widths))
        self._label = (-1, 0)  # step and round of the message sent last
        self._ordinal = 0  # and how many of the same label went before it

    def split(self, trees: int) -> None:
        assert max(trees, 1) == len(self._widths), "the number of trees is fixed for a run"

    def set(self, reg: Reg, lin: Lin, tree: int | None = None) -> None:
        target = self._recorder.row(reg.name, self._peer)
        for part in self._parts(tree):
            self._form(part, target, lin)

    def set_together(self, sets: Sequence[Set]) -> None:
        for one in sets:
            self.set(one.reg, one.lin, one.tree)

    def quantize(self, reg: Reg, lin: Lin, to: PeerId, head: Head) -> None:  # noqa: ARG002
        raise AssertionError("a plan holds no values: nothing can be rounded")

    def apart(self, lin: Lin) -> None:  # noqa: ARG002
        raise AssertionError("a plan holds no values: nothing is apart")

    def norm(self, lin: Lin, tree: int | None = None) -> float:  # noqa: ARG002
        raise AssertionError("a plan holds no values: metrics of vectors cannot be observed")

    def outgoing(self, lins: tuple[Lin, ...], head: Head) -> tuple[Symbol, ...]:
        parts = self._parts(head.tree if head.kind is Kind.RELAY else None)
        label = (head.step, head.round)
        self._ordinal = self._ordinal + 1 if label == self._label else 0
        self._label = label
        return tuple(self._message(lin, head, section, parts) for section, lin in enumerate(lins))

    def about_to_write(self, name: str) -> None:
        """Nobody reads late: a message has a row of its own."""

    def _message(self, lin: Lin, head: Head, section: int, parts: range) -> Symbol:
        rows: list[Row | None] = [None] * len(self._widths)
        for part in parts:
            owner = (self._peer, head.round, self._ordinal, section)
            rows[part] = row = self._recorder.parts[part].new_row(owner, head.step)
            count = self._count(head) if self._recorder.follows else None
            self._form(part, row.number, lin, count)
        return Symbol(tuple(rows), sum(self._widths[part] for part in parts))

    def _count(self, head: Head) -> Formula:
        assert isinstance(head.count, int), "counts of messages are followed only if integers"
        return formula_of(head.count)

    def counted(self, head: Head, outgoing: tuple[Symbol, ...]) -> Head:
        """The header as the receiver gets it: with a count that says which message's it is."""
        row = outgoing[0].rows[0] if self._recorder.follows else None
        return replace(head, count=Count.of(int(head.count), row.number)) if row else head

    def _parts(self, tree: int | None) -> range:
        return self._all if tree is None or len(self._all) == 1 else range(tree, tree + 1)

    def _form(self, part: int, target: int, lin: Lin, count: Formula | None = None) -> None:
        terms = [(coef, self._row(ref, part)) for coef, ref in lin.terms]
        self._recorder.parts[part].form(target, terms, lin.divisor, count)

    def _row(self, ref: Reg | Message, part: int) -> int:
        if isinstance(ref, Message):
            row: Row = ref.payload.rows[part]
            return row.number
        return self._recorder.row(ref.name, self._peer)


class SymbolicBody:
    """A simulated peer without a model: `world.Body`.

    `rate` gives the schedule's rate of a step, `local_step_s` the virtual seconds of one of
    `local_steps`; `on_train` hears of every training once what came before it is complete.
    """

    vectors: SymbolicVectors

    def __init__(
        self,
        vectors: SymbolicVectors,
        recorder: Recorder,
        peer: int,
        rate: Callable[[int], float],
        local_step_s: float,
        local_steps: int,
        on_train: Callable[[], None],
    ) -> None:
        self.vectors = vectors
        self._recorder = recorder
        self._peer = peer
        self._rate = rate
        self._local_step_s = local_step_s
        self._local_steps = local_steps
        self._on_train = on_train

    def train(self, effect: Train) -> Trained:
        self._recorder.train(self._peer, effect)
        self._on_train()
        rate = self._rate(effect.place) * float(effect.lr_scale)
        return Trained(effect.step, rate, self._taken(effect))

    def duration_s(self, effect: Train) -> float:
        return self._local_step_s * self._taken(effect)

    def _taken(self, effect: Train) -> int:
        varied = effect.local_steps
        return self._local_steps if varied is None else len(varied)

    def letter(self, head: Head, outgoing: tuple[Symbol, ...]) -> tuple[Head, tuple[Symbol, ...]]:
        return self.vectors.counted(head, outgoing), outgoing
