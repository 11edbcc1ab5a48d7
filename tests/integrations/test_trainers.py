"""Swarms in the Trainers of other libraries: the examples as real programs, and what goes wrong."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import pytest

from tests.conftest import ROOT, Start, ended

Coordinator = Callable[..., tuple[str, IO[str]]]

LIBRARIES = [
    pytest.param(
        library,
        marks=pytest.mark.skipif(
            find_spec(library) is None, reason=f"`make test-integrations` has {library}"
        ),
    )
    for library in ("transformers", "lightning")
]
EXAMPLES = {"transformers": "huggingface.py", "lightning": "lightning_digits.py"}

FAILING = {
    "transformers": """
import sys, torch, transformers, relayswarm
from relayswarm.integrations.transformers import SwarmCallback

class Network(torch.nn.Linear):
    def forward(self, x, labels):
        if swarm.step_number == 3:
            raise ValueError("no such batch")
        return {"loss": (super().forward(x) - labels).square().mean()}

model = Network(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
arguments = transformers.TrainingArguments("here", max_steps=9, use_cpu=True, report_to="none")
with relayswarm.Swarm(model, optimizer, sys.argv[1]) as swarm:
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, optimizers=(optimizer, None),
        callbacks=[SwarmCallback(swarm)],
    )
    trainer.train()
""",
    "lightning": """
import sys, torch, lightning, relayswarm
from relayswarm.integrations.lightning import SwarmCallback

class Network(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

    def configure_optimizers(self):
        return self.optimizer

    def training_step(self, batch, _):
        if swarm.step_number == 3:
            raise ValueError("no such batch")
        return self.layer(batch).square().mean()

module = Network()
with relayswarm.Swarm(module, module.optimizer, sys.argv[1]) as swarm:
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=-1, callbacks=[SwarmCallback(swarm)], logger=False,
        enable_checkpointing=False, accumulate_grad_batches=2,
    )
    trainer.fit(module, torch.ones(8, 1, 1))
""",
}


@pytest.mark.timeout(900)  # three processes import torch and more, perhaps on a busy machine
@pytest.mark.parametrize("library", LIBRARIES)
def test_two_programs_learn_from_each_other(
    library: str, start: Start, coordinator: Coordinator
) -> None:
    """Each has mostly a few of the ten digits."""
    address, events = coordinator("task.name=own-loop", "peers=2", "steps=300", "data.alpha=0.1")
    example = str(ROOT / "examples" / EXAMPLES[library])
    said = "".join(ended(one) for one in [start(example, address) for _ in range(2)])
    found = dict(re.findall(r"^(peer-\d) accuracy (\S+)$", said, re.MULTILINE))
    assert found.keys() == {"peer-0", "peer-1"}
    accuracies = [float(one) for one in found.values()]
    assert min(accuracies) > 0.7
    assert abs(accuracies[0] - accuracies[1]) < 0.03
    told = map(json.loads, (line for line in events if line.startswith("{")))
    until_the_end = itertools.takewhile(lambda event: event["event"] != "finished", told)
    ends = {
        (one["peer"], one["step"]) for one in until_the_end if one["event"] == "member_finished"
    }
    assert ends == {("peer-0", 300), ("peer-1", 300)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_error_in_training_leaves_the_swarm(
    library: str, start: Start, coordinator: Coordinator, tmp_path: Path
) -> None:
    """At once, and not when a lease runs out."""
    address, events = coordinator(
        "task.name=own-loop", "peers=1", "steps=9", "coordinator.lease_s=3600"
    )
    (tmp_path / "program.py").write_text(FAILING[library])
    program = start("program.py", address)
    _, errors = program.communicate()
    assert program.returncode == 1
    assert "ValueError: no such batch" in errors
    lost = next(json.loads(line) for line in events if '"member_lost"' in line)
    assert (lost["peer"], lost["step"], lost["reason"]) == ("peer-0", 3, "left")
