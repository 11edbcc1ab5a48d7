"""Whether a swarm that is stopped as a whole, and goes on from what its algorithms kept, ends as if
it had never been stopped: what `deterministic = true` promises of checkpoints.

A method with memory besides its registers has to give it in `kept` and take it back in `restore`
(`Synchronous`), or in `state` and `resume`. One whose `state` is None promises nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import cast

from peer.algorithms.core import LIVE, CoreState, PeerId, Train
from peer.conformance.trials import STEPS, Maker, Member, Stopped, Trial
from peer.simulator.event_log import Logged

STOP = STEPS // 2  # the step before which all are stopped


def check_resume(trial: Trial, make: Maker) -> None:
    """Run a trial twice, the second time from its middle. Raises AssertionError."""
    swarm = trial.swarm(make)
    stopped: dict[PeerId, Stopped | None] = {}
    for peer, member in swarm.members.items():
        member.node.on_train = partial(_stop, stopped, peer, member)
    swarm.go()
    kept = {peer: state for peer, state in stopped.items() if state is not None}
    if len(kept) < len(swarm.members):
        return  # no promise
    again = trial.swarm(make, kept)
    again.go()
    for peer, member in swarm.members.items():
        _compare(peer, member, again.members[peer])


def _stop(
    stopped: dict[PeerId, Stopped | None], peer: PeerId, member: Member, effect: Train
) -> None:
    """What a checkpoint before this step would hold."""
    if effect.step == STOP:
        state = cast(Logged, member.node.algorithm).inner.state()
        registers = dict(member.body.vectors.registers)
        stopped[peer] = None if state is None else Stopped(_written(peer, state), registers)


def _written(peer: PeerId, state: CoreState) -> CoreState:
    """As it comes back from a file."""
    try:
        values: Mapping[str, object] = json.loads(json.dumps(state.values))
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"resume: {peer} keeps values that JSON cannot hold: {error}"
        ) from error
    return CoreState(values, state.received)


def _compare(peer: PeerId, member: Member, again: Member) -> None:
    model, other = member.body.vectors[LIVE], again.body.vectors[LIVE]
    if model != other:
        raise AssertionError(
            f"resume: stopped before step {STOP} and gone on, {peer} ends with "
            f"{float(other[0]):g}, not {float(model[0]):g}; what a method remembers besides its "
            f"registers belongs into `kept`, and `restore` takes it back"
        )
