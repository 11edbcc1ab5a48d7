"""A callback for the Trainer of Hugging Face Transformers: `pip install relayswarm[transformers]`.

    with relayswarm.Swarm(model, optimizer, "coordinator.example:50050") as swarm:
        trainer = Trainer(
            model,
            arguments,
            train_dataset=mine(swarm.site),
            optimizers=(optimizer, None),
            callbacks=[SwarmCallback(swarm)],
        )
        trainer.train()

The Trainer has the model and optimizer of the swarm.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from relayswarm.swarm import Swarm

log = logging.getLogger("relayswarm.peer")


class SwarmCallback(TrainerCallback):  # type: ignore[misc]
    """Exchanges models after each optimizer step of a Trainer, and ends training with the run.

    `swarm` has the Trainer's model and optimizer; leaving it is left to its `with` block, in which
    `trainer.train()` stands: so an error in training leaves the swarm, too.
    """

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self._loss: float | None = None

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **given: Any,  # noqa: ARG002
    ) -> None:
        """Keep the loss, which status and metrics show from then on."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **given: Any,  # noqa: ARG002
    ) -> None:
        """An optimizer step is taken, of however many batches; a skipped one counts, too."""
        self.swarm.exchange(loss=self._loss)
        control.should_training_stop |= self.swarm.finished

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **given: Any,  # noqa: ARG002
    ) -> None:
        """Say so if the Trainer ends before the run does."""
        if not self.swarm.finished:
            log.warning(
                "max_steps = %d: training ended after step %d of %d of the run; for all give more",
                state.max_steps,
                self.swarm.step_number,
                self.swarm.config.steps,
            )
