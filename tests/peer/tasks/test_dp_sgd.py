"""Opacus beside relayswarm: DP-SGD within the local steps, and its accountant beside ours."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from peer.simulator.run import simulate
from peer.tasks.registry import load_task
from peer.training.movement import Spent
from peer.training.trainer import Trainer, make_site
from relayswarm.config import parse

EXAMPLE = Path(__file__).parents[3] / "examples" / "dp_sgd.py"
TASK = (f"task.file={EXAMPLE}", "task.name=private-digits", "data.batch_size=16", "peers=3")

pytest.importorskip("opacus", reason="`make test-integrations` has Opacus")
pytestmark = pytest.mark.filterwarnings("ignore")  # Opacus's own, of its defaults


@pytest.mark.parametrize(("multiplier", "steps"), [(2.0, 1), (20.0, 400)])
def test_epsilon_of_movements_is_that_of_opacus_without_sampling(
    multiplier: float, steps: int
) -> None:
    from opacus.accountants import RDPAccountant

    accountant, spent = RDPAccountant(), Spent()
    for _ in range(steps):
        accountant.step(noise_multiplier=multiplier, sample_rate=1.0)
        spent.add(multiplier)
    assert math.isclose(spent.epsilon(1e-5), accountant.get_epsilon(1e-5), rel_tol=0.01)


def test_a_local_step_moves_no_further_than_the_clipped_gradient() -> None:
    options = ("task.options.noise_multiplier=1e-9", "task.options.max_grad_norm=0.01")
    plain = ("optimizer.lr=0.5", "optimizer.momentum=0.0", "optimizer.nesterov=false")
    config = parse("", (*TASK, *options, *plain, "optimizer.schedule=constant"))
    trainer = Trainer(load_task(config.task), config, make_site(config, 0))
    before = trainer.flat.vector.clone()
    loss = trainer.train(0).loss
    moved = float((trainer.flat.vector - before).norm())
    assert 0 < moved <= 0.5 * 0.01 * 1.001
    assert math.isfinite(loss)


def test_a_swarm_learns_with_it_and_each_site_knows_its_epsilon() -> None:
    config = parse(
        "", (*TASK, "steps=40", "topology.graph=chain", "task.options.noise_multiplier=0.7")
    )
    outcome = simulate(config, None, lambda *_, **__: None)
    assert min(peer.metrics["accuracy"] for peer in outcome.peers) > 0.3
    trainer = Trainer(load_task(config.task), config, make_site(config, 0))
    trainer.train(0)
    assert 0 < trainer.task.epsilon() < 10
    assert torch.isfinite(trainer.flat.vector).all()
