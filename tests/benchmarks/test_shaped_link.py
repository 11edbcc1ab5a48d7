"""What of the shaped link needs no root: the task that is trained over it, and the refusal."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from benchmarks import shaped_link
from benchmarks.shaped_link import Drift
from relayswarm.task import Site


def test_the_gradient_is_autograds() -> None:
    task = Drift({"elements": 50})
    model = task.model()
    batch = task.data(Site(shard=1, shards=2)).batch(torch.tensor([0]))
    loss = task.loss(model, batch)
    (expected,) = torch.autograd.grad(loss, [model.x])
    value, (gradient,) = task.gradients(model, batch)
    assert torch.equal(gradient, expected)
    assert torch.equal(value, loss)
    assert not torch.equal(batch, task.data(Site(shard=0, shards=2)).batch(torch.tensor([0])))


def test_says_that_it_needs_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["shaped_link.py"])
    with pytest.raises(SystemExit) as ended:
        shaped_link.main()
    assert ended.value.code == 2
    assert "run it with sudo" in capsys.readouterr().err
