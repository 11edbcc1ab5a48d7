"""What holds in every trial: it can be replayed, it ends, and it conserves what it declares.

A failure is an AssertionError that names the peer, what happened to it, and what it decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from peer.algorithms.core import (
    LIVE,
    Algorithm,
    Conserved,
    Effect,
    Event,
    Message,
    PeerId,
    Received,
    Send,
)
from peer.conformance.trials import STEPS, Maker, Member, Swarm, Trial
from peer.simulator.event_log import describe_effect, describe_event

TOLERANCE = 1e-9  # for methods whose coefficients are floating-point numbers


def check_trial(trial: Trial, make: Maker, cls: type[Algorithm]) -> None:
    """Run a trial and look at all that happened. Raises AssertionError."""
    swarm = trial.swarm(make)
    swarm.go()
    check_end(swarm)
    for peer, member in swarm.members.items():
        check_sections(peer, member, cls.sections)
        check_replay(peer, member, make(swarm.run))
    if cls.conserves:
        check_weights(swarm)
    if cls.conserves is Conserved.MEAN and not swarm.condition.loses:
        check_mean(swarm)


def check_end(swarm: Swarm) -> None:
    """Every peer has finished, after the last step and once."""
    for peer, member in swarm.members.items():
        step = member.node.algorithm.step
        if member.node.finished_at is None:
            goes_on = "goes on without end" if swarm.goes_on else "waits for ever"
            last = _told(member, len(member.log) - 1)
            raise AssertionError(f"losses: {peer} {goes_on} at step {step} of {STEPS}; {last}")
        if not member.models:
            raise AssertionError(f"losses: {peer} has finished, but never emitted Averaged")


def check_sections(peer: PeerId, member: Member, sections: int) -> None:
    """Messages have no more vectors than the class declares: receivers refuse them otherwise."""
    for k, (_, _, effects) in enumerate(member.log):
        sent = [effect for effect in effects if isinstance(effect, Send)]
        if any(len(send.lins) > sections for send in sent):
            problem = f"{peer} sends more vectors than the {sections} that `sections` declares"
            raise AssertionError(f"{problem}; {_told(member, k)}")


def check_replay(peer: PeerId, member: Member, fresh: Algorithm) -> None:
    """Another object decides the same upon the same events, of which only headers are left; what
    `admit` was asked in between must not matter."""
    for k, (now, event, effects) in enumerate(member.log):
        again = fresh.handle(_headers_only(event), now)
        if again != effects:
            raise AssertionError(
                f"replay: {peer} decides otherwise the second time; {_told(member, k)}\n"
                f"then: {_described(again)}"
            )


def check_weights(swarm: Swarm) -> None:
    """The weights of every average sum to one: where all models are 1, averages are 1."""
    for peer, member in swarm.members.items():
        for averaged, model in zip(member.node.history, member.models, strict=True):
            if abs(model[1] - 1) > TOLERANCE:
                raise AssertionError(
                    f"conservation: the weights of {peer}'s average in step {averaged.step} sum "
                    f"to {float(model[1]):g}, not 1"
                )


def check_mean(swarm: Swarm) -> None:
    """Where nothing was lost, the mean of all models has moved by the mean of what training did."""
    members = swarm.members.values()
    trained = sum(update[0] for member in members for update in member.body.updates)
    moved = sum(member.body.vectors[LIVE][0] - member.start[0] for member in members)
    if abs(float(moved - trained)) > TOLERANCE:
        raise AssertionError(
            f"conservation: training moved the sum of all models by {float(trained):g}, but with "
            f"the averages it has moved by {float(moved):g}"
        )


def _headers_only(event: Event) -> Event:
    if not isinstance(event, Received):
        return event
    messages = (Message(message.head, message.section) for message in event.messages)
    return Received(event.head, tuple(messages))


def _told(member: Member, k: int) -> str:
    now, event, effects = member.log[k]
    return f"event {k}, at {now:g} s: {describe_event(event)}\ndecided: {_described(effects)}"


def _described(effects: Sequence[Effect]) -> str:
    return "; ".join(map(describe_effect, effects)) or "nothing"
