"""What a peer that comes while the run is under way begins with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peer.parts import Parts
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, make_site
from peer.transport.remote_model import RemoteModel
from relayswarm import config as run_config

CONFIG = run_config.parse("peers = 2\n[task]\nname = 'quadratics'")


@pytest.mark.parametrize(("own", "theirs"), [(0, 7), (5, 7), (7, 7), (9, 7)])
def test_the_model_that_is_further_is_taken(own: int, theirs: int) -> None:
    """Its own is that of a checkpoint, or with step 0 a fresh one."""
    trainer = Trainer(load_task(CONFIG.task), CONFIG, make_site(CONFIG, 0))
    vector = trainer.flat.vector
    vector.fill_(1.0)
    donated = torch.full_like(vector, 2.0)
    model = RemoteModel("run", "peer-1", theirs, trainer.fingerprint, donated, ())
    parts: Any = SimpleNamespace(trainer=trainer, ask_donors=lambda _: model)
    candidate: Any = None
    assert Parts._catch_up(parts, candidate, own) == max(own, theirs)
    assert bool((vector == (2.0 if theirs > own else 1.0)).all())
