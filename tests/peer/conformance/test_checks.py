"""Algorithms that break a promise are found out, and ours keep theirs."""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import partial
from typing import ClassVar

import pytest

from peer.algorithms import ALGORITHMS, build
from peer.algorithms.allreduce import AllReduce
from peer.algorithms.core import (
    Algorithm,
    Conserved,
    CoreState,
    Effect,
    Event,
    Head,
    Lin,
    Run,
    Set,
    Verdict,
)
from peer.algorithms.dpsgd import DPSGD
from peer.algorithms.gossip import Row, X
from peer.algorithms.relaysgd import RelaySGD
from peer.algorithms.swarmsgd_blocking import BlockingSwarmSGD
from peer.conformance import check
from peer.conformance.checks import check_trial
from peer.conformance.resuming import check_resume
from peer.conformance.trials import CALM, CONDITIONS, Trial

# --- ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ours_keep_what_they_declare(name: str) -> None:
    cls: type[Algorithm] = ALGORITHMS[name][0]
    for seed, condition in enumerate(CONDITIONS):
        check_trial(Trial(condition, 4, seed), partial(build, name, {}), cls)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ours_go_on_as_if_never_stopped(name: str) -> None:
    for seed in range(3):
        check_resume(Trial(CALM, 4, seed), partial(build, name, {}))


def test_the_blocking_form_does_too() -> None:
    make = partial(build, "swarmsgd", {"blocking": True})
    for seed, condition in enumerate(CONDITIONS):
        check_trial(Trial(condition, 4, seed), make, BlockingSwarmSGD)


def test_methods_declare_what_their_papers_rest_on() -> None:
    assert (DPSGD.conserves, AllReduce.conserves) == (Conserved.MEAN, Conserved.MEAN)
    assert RelaySGD.conserves is Conserved.WEIGHT  # the mean only in the long run


# --- broken ones ----------------------------------------------------------------------------------


class Gossip(DPSGD):
    """Ours, taking the options that a class from elsewhere gets."""

    def __init__(self, run: Run, options: object) -> None:  # noqa: ARG002
        super().__init__(run)


class Forgetful(Gossip):
    """Keeps more of its own model the longer it trains, and forgets for how long it has."""

    conserves = None
    averaged = 0

    def mix(self, row: Row) -> list[Effect]:
        self.averaged += 1
        part = Fraction(1, 1 + self.averaged)
        return [*super().mix(row), Set(X, Lin(((part, X),)))]


class Mindful(Forgetful):
    """Remembers it over a pause."""

    def kept(self) -> CoreState:
        return CoreState({"averaged": self.averaged})

    def restore(self, state: CoreState) -> None:
        self.averaged = state.values["averaged"]


class Unwritable(Mindful):
    """In a form that no checkpoint can hold."""

    def kept(self) -> CoreState:
        return CoreState({"averaged": {self.averaged}})


def test_what_is_not_kept_over_a_pause_is_found() -> None:
    with pytest.raises(AssertionError, match=r"resume: stopped before step 4 .* `restore`"):
        check(Forgetful, {}, 3, CALM)
    check(Mindful, {}, 3, CALM)
    with pytest.raises(AssertionError, match=r"resume: peer-\d keeps values that JSON cannot hold"):
        check(Unwritable, {}, 3, CALM)


class Remembers(Gossip):
    """Its objects share a number."""

    calls: ClassVar[itertools.count[int]] = itertools.count()

    def mix(self, row: Row) -> list[Effect]:
        return [Set(X, Lin(((next(self.calls), X),))), *super().mix(row)]


class Peeks(Gossip):
    """Decides by what is in a vector."""

    def mix(self, row: Row) -> list[Effect]:
        payloads = [received.messages[0].payload for _, received in row.others]
        return super().mix(row) if all(payloads) else []


class WritesInAdmit(Gossip):
    asked = 0

    def admit(self, head: Head) -> Verdict:
        self.asked += 1
        return super().admit(head)

    def mix(self, row: Row) -> list[Effect]:
        return [Set(X, Lin(((self.asked, X),))), *super().mix(row)]


class WaitsForEver(Gossip):
    def next_deadline(self) -> None:
        return None


class Spins(Gossip):
    """Asks to be woken again and again, and goes on with nothing."""

    now = 0.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        self.now = now
        return effects if self.step < 2 else []

    def next_deadline(self) -> float:
        return self.now + 0.1


class ForgetsTheMissing(Gossip):
    """Doesn't rescale the weights where messages are missing."""

    def mix(self, row: Row) -> list[Effect]:
        return super().mix(Row(row.own, row.others, 1))


class SendsTwo(Gossip):
    def message(self) -> tuple[Lin, ...]:
        return (*super().message(), *super().message())


class Fails(Gossip):
    def mix(self, row: Row) -> list[Effect]:
        raise ZeroDivisionError(row.total)


BROKEN = [
    (Remembers, "replay: peer-0 decides otherwise the second time"),
    (Peeks, "replay: peer-0 decides otherwise the second time"),
    (WritesInAdmit, "replay: peer-0 decides otherwise the second time"),
    (WaitsForEver, "losses: peer-0 waits for ever at step"),
    (Spins, "losses: peer-0 goes on without end at step"),
    (ForgetsTheMissing, "conservation: the weights of peer-"),
    (SendsTwo, "peer-0 sends more vectors than the 1 that `sections` declares"),
]


@pytest.mark.parametrize(("cls", "reason"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_a_broken_promise_is_found_and_can_be_seen_again(cls: type[Algorithm], reason: str) -> None:
    with pytest.raises(AssertionError) as first:
        check(cls, {}, 3)
    assert reason in str(first.value)
    (note,) = first.value.__notes__
    assert note.startswith(f"to try this alone: check_algorithm({cls.__name__}, {{}}, peers=3, ")

    trial = note.partition("trial='")[2].removesuffix("')")
    with pytest.raises(AssertionError) as again:
        check(cls, {}, 3, trial)
    assert reason in str(again.value)


def test_what_goes_wrong_inside_comes_with_its_trial() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        check(Fails, {}, 3)
    assert "trial='all arrives, 3 peers, seed 0'" in caught.value.__notes__[0]


def test_a_mean_that_moves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RelaySGD, "conserves", Conserved.MEAN)
    with pytest.raises(AssertionError, match="conservation: training moved the sum of all models"):
        check_trial(Trial("all arrives", 4, 0), partial(build, "relaysgd", {}), RelaySGD)


def test_an_unknown_trial_is_refused_with_all_names() -> None:
    with pytest.raises(ValueError, match="trial = 'nothing': there is none") as caught:
        check(Gossip, {}, 3, "nothing")
    assert "\nsilent losses, 6 peers, seed 1\n" in str(caught.value)
    assert str(caught.value).endswith("\ndaemons")
