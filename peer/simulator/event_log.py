"""A run as text: what happened to each peer, and what it decided.

The log of (now, event, effects) holds headers and coefficients but no vectors, so that a page of
it can be read, compared in a test, and its difference be reviewed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from peer.algorithms.core import (
    Algorithm,
    Averaged,
    Cancel,
    Coef,
    Drop,
    Effect,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    Lin,
    Message,
    NewView,
    Observe,
    Received,
    Reg,
    Role,
    Send,
    SendDone,
    Set,
    Tick,
    Train,
    Trained,
    Verdict,
)

Log: TypeAlias = Callable[[float, Event, list[Effect]], None]


class Logged(Algorithm):
    """An algorithm that reports each call of `handle` and is otherwise the one inside."""

    def __init__(self, inner: Algorithm, log: Log) -> None:
        self.inner = inner
        self._log = log

    @property
    def registers(self) -> Mapping[str, Role]:
        return self.inner.registers

    @property
    def step(self) -> int:
        return self.inner.step

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = self.inner.handle(event, now)
        self._log(now, event, effects)
        return effects

    def next_deadline(self) -> float | None:
        return self.inner.next_deadline()

    def admit(self, head: Head) -> Verdict:
        return self.inner.admit(head)


def describe_event(event: Event) -> str:
    """What happened, in a line."""
    match event:
        case NewView(view):
            return f"view {view.epoch.number} of {view.n} peers from step {view.effective_step}"
        case Trained(step):
            return f"trained {step}"
        case Received(head):
            return f"received {_head(head)} from {head.sender}"
        case Gone(peer, None):
            return f"cannot reach {peer}"
        case Gone(peer, head) if head:
            return f"lost {_head(head)} from {peer}"
        case SendDone(to, head, verdict):
            return f"sent {_head(head)} to {to}: {verdict.value if verdict else 'no answer'}"
        case Tick():
            return "deadline"
    raise AssertionError(f"unknown event {event!r}")


def describe_effect(effect: Effect) -> str:
    """What was decided, in a line."""
    match effect:
        case Train(step, lr_scale):
            return f"train {step}" + (f" at {lr_scale} of the rate" if lr_scale != 1 else "")
        case Send(to, head, lins):
            return f"send {_head(head)} to {to}: {', '.join(map(_lin, lins)) or 'nothing'}"
        case Set(reg, lin, tree):
            return f"set {reg.name}{_part(tree)} = {_lin(lin)}"
        case Cancel(to, head):
            return f"cancel {_head(head)} to {to}"
        case Observe(metric, lin, tree):
            return f"observe {metric}{_part(tree)} = |{_lin(lin)}|"
        case Drop(head, reason):
            return f"drop {_head(head)} from {head.sender}: {reason.value}"
        case Averaged():
            counts = f"{effect.counted} of {effect.swarm_size} models"
            return f"averaged {effect.step}: {counts}, {effect.missed} missed, {effect.late} late"
        case Finished(step):
            return f"finished {step}"
    raise AssertionError(f"unknown effect {effect!r}")


def _head(head: Head) -> str:
    words = [head.kind.value, _label(head)]
    if head.kind in (Kind.OFFER, Kind.REPLY):
        words = [head.kind.value, str(head.exchange)]
    if head.tree:
        words.append(f"tree {head.tree}")
    if head.kind is Kind.RELAY:
        words.append(f"count {head.count}")
    if head.weight != 1:
        words.append(f"weight {head.weight}")
    return " ".join(words)


def _label(head: Head) -> str:
    return f"{head.step}.{head.round}" if head.round else f"{head.step}"


def _part(tree: int | None) -> str:
    return "" if tree is None else f"[tree {tree}]"


def _lin(lin: Lin) -> str:
    terms = [("-" if coef < 0 else "+", _term(coef, ref)) for coef, ref in lin.terms]
    text = " ".join(f"{sign} {term}" for sign, term in terms).removeprefix("+ ")
    return (text or "0") if lin.divisor == 1 else f"({text}) / {lin.divisor}"


def _term(coef: Coef, ref: Reg | Message) -> str:
    name = ref.name if isinstance(ref, Reg) else f"{ref.head.sender}:{_label(ref.head)}"
    size = -coef if coef < 0 else coef
    return name if size == 1 else f"{size} {name}"
