"""Mixed precision: what moves, what doesn't, and that a run goes on with the same scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peer.simulator.stacked_training import choose
from peer.training.trainer import Trainer, make_site
from relayswarm.config import parse
from relayswarm.errors import ConfigError

SMALL = 0.01
"""Times the loss no gradient overflows with the scale that there is at first."""

HALF, BRAIN = "optimizer.autocast=float16", "optimizer.autocast=bfloat16"


@pytest.fixture
def overflowing(rig: Any) -> type[Any]:
    """The rig's task, with a loss that is out of bounds in `step`s 0 and 3."""

    class Overflowing(rig.Task):
        calls = -1

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch) * (1e30 if self.calls in (0, 3) else SMALL)

    return Overflowing


def of(rig: Any, task: Any = None, *overrides: str) -> Trainer:
    return rig.trainer(*overrides, task=task)


@pytest.mark.parametrize("name", [HALF, BRAIN])
def test_the_loss_is_computed_in_less_and_nothing_else_is(rig: Any, name: str) -> None:
    seen: list[torch.dtype] = []

    class Watched(rig.Task):
        def loss(self, model, batch):
            handle = model[0].register_forward_hook(lambda *_: seen.append(_[2].dtype))
            try:
                return super().loss(model, batch) * SMALL
            finally:
                handle.remove()

    trainer = of(rig, Watched(), name)
    plain = of(rig, Watched())
    for step in range(6):
        loss, expected = trainer.train(step).loss, plain.train(step).loss
    assert set(seen[::2]) == {getattr(torch, name.rpartition("=")[2])}
    assert set(seen[1::2]) == {torch.float32}
    assert trainer.flat.vector.dtype is torch.float32
    assert loss == pytest.approx(expected, rel=0.05)
    moved = float((trainer.flat.vector - plain.flat.vector).norm())
    assert 0 < moved < 0.02 * float(plain.flat.vector.norm())


def test_a_step_that_overflows_moves_nothing_and_halves_the_scale(
    rig: Any, overflowing: type[Any]
) -> None:
    """Neither parameters nor momentum; buffers of BatchNorm are of the forward pass."""
    trainer = of(rig, overflowing(), HALF)
    end = trainer.flat.parameters_end
    scales, moves = [], []
    for step in range(6):
        before, state = trainer.flat.vector[:end].clone(), trainer.state()
        trainer.train(step)
        moves.append(not torch.equal(trainer.flat.vector[:end], before))
        scales.append(state.values["scaler"]["scale"])
        if not moves[-1]:
            momenta = {k: v for k, v in trainer.state().tensors.items() if "optimizer/" in k}
            assert momenta.keys() == {k for k in state.tensors if "optimizer/" in k}
            assert all(torch.equal(v, state.tensors[k]) for k, v in momenta.items())
    assert moves == [False, True, True, False, True, True]
    assert [scale / scales[0] for scale in scales] == [1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_resumed_run_goes_on_with_the_same_scale(rig: Any, overflowing: type[Any]) -> None:
    """To the bits of one that was not stopped, right after a change of the scale."""
    task = overflowing()
    whole = of(rig, task, HALF)
    for step in range(4):
        whole.train(step)
    resumed_task = overflowing()
    resumed_task.calls = task.calls
    resumed = of(rig, resumed_task, HALF)
    state = whole.state()
    assert state.values["scaler"]["scale"] == 2**14
    resumed.load_state(state)
    for step in range(4, 8):
        whole.train(step)
        resumed.train(step)
        assert resumed.state().values["scaler"] == whole.state().values["scaler"]
    assert torch.equal(resumed.flat.vector, whole.flat.vector)


def test_a_checkpoint_of_another_precision_is_refused(rig: Any) -> None:
    with pytest.raises(ConfigError, match="are not those of this run"):
        of(rig, None, HALF).load_state(of(rig).state())
    state = of(rig, None, HALF).state()
    broken = type(state)(state.tensors, {**state.values, "scaler": {"scale": "large"}})
    with pytest.raises(ConfigError, match="are not those of this run"):
        of(rig, None, HALF).load_state(broken)


def test_scaled_gradients_do_not_go_with_quasi_global_momentum(rig: Any) -> None:
    for name, fine in ((BRAIN, True), (HALF, False)):
        trainer = of(rig, None, name, "algorithm.name=dpsgd-qgm")
        momentum = torch.zeros_like(trainer.flat.vector)
        if fine:
            trainer.train(0, momentum=momentum)
            continue
        with pytest.raises(ConfigError, match=r"optimizer.autocast = 'float16': its scaled"):
            trainer.train(0, momentum=momentum)


def test_peers_of_mixed_precision_train_one_by_one() -> None:
    config = parse("", ["task.name=digits", "peers=2", BRAIN])
    choice = choose(config, [make_site(config, k) for k in range(2)], "cpu", "on")
    assert (choice.is_stacked, choice.reason) == (False, "cannot be stacked: optimizer.autocast")
