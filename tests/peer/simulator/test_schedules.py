"""The rate of a step is the same on every peer, however it came to that step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pytest
import torch

from peer.algorithms.core import Averaged, Train
from peer.simulator.world import Node
from peer.training.schedule import learning_rate
from peer.training.trainer import Trainer, TrainResult

STEPS = 30
SETTINGS = ("optimizer.schedule=step", "optimizer.lr=0.05", "optimizer.warmup=0.2")
IMPATIENT = "[faults]\nslow = {peer-3 = 10}\n[transport]\ndeadline_s = 0.5"
RATES = [learning_rate(0.05, "step", step, STEPS, warmup_steps=6) for step in range(STEPS)]

Rates = Mapping[Trainer, Mapping[int, float]]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Rates:
    """By trainer, the rate at which it took each step."""
    found: dict[Trainer, dict[int, float]] = defaultdict(dict)
    train = Trainer.train

    def noted(self: Trainer, step: int, *given: object) -> TrainResult:
        result = train(self, step, *given)
        found[self][step] = result.lr
        return result

    monkeypatch.setattr(Trainer, "train", noted)
    return found


def assert_equal_at_equal_steps(rates: Rates) -> None:
    assert len(set(RATES)) > 5
    for own in rates.values():
        assert own == {step: RATES[step] for step in own}


def test_of_a_peer_that_is_ten_times_slower_and_jumps(play, rates: Rates) -> None:
    play(IMPATIENT, *SETTINGS)
    assert_equal_at_equal_steps(rates)
    *others, slowest = sorted(rates.values(), key=len, reverse=True)
    assert all(len(own) > 2 * len(slowest) for own in others)
    jumps = [
        after - before for before, after in zip(list(slowest), list(slowest)[1:], strict=False)
    ]
    assert max(jumps) > 1


def test_of_a_peer_that_joins_late(play, rates: Rates) -> None:
    play("[[faults.crash]]\npeer = 'peer-1'\nat_step = 5\nrejoin_after_s = 8", *SETTINGS)
    assert_equal_at_equal_steps(rates)
    (late,) = (own for own in rates.values() if 0 not in own)
    assert min(late) > 10


PAIRS = "[algorithm]\nname = '{}'\n[faults]\nslow = {{peer-3 = 10}}"


@pytest.mark.parametrize("method", ["swarmsgd", "adpsgd"])
def test_of_a_slow_peer_of_a_pairwise_method(
    play, rates: Rates, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Rates are equal at equal progress of the swarm: how many steps all have done, over n."""
    done = 0
    progress: dict[tuple[str, int], int] = {}
    train, averaged = Node.train, Node.averaged

    def began(self: Node, effect: Train) -> None:
        progress[self.peer, effect.step] = done // 4
        train(self, effect)

    def ended(self: Node, effect: Averaged) -> None:
        nonlocal done
        done += 1
        averaged(self, effect)

    monkeypatch.setattr(Node, "train", began)
    monkeypatch.setattr(Node, "averaged", ended)
    play(PAIRS.format(method), *SETTINGS)
    assert len(progress) == done == 4 * STEPS
    for trainer, own in rates.items():
        places = [progress[f"peer-{trainer.site.shard}", step] for step in range(STEPS)]
        assert own == {step: RATES[place] for step, place in enumerate(places)}
    assert progress["peer-3", 1] > 5  # the others have got on meanwhile
    assert progress["peer-0", STEPS - 1] < STEPS - 4  # and wait for the slow one


def test_stacked_peers_of_a_pairwise_method_have_these_rates(play) -> None:
    one, all_at_once = (
        play(PAIRS.format("swarmsgd"), *SETTINGS, stacked=stacked) for stacked in ("off", "on")
    )
    for apart, stacked in zip(one.outcome.peers, all_at_once.outcome.peers, strict=True):
        assert apart.model is not None
        assert stacked.model is not None
        torch.testing.assert_close(stacked.model["x"], apart.model["x"], rtol=1e-9, atol=1e-12)
