"""A callback for the Trainer of Lightning: `pip install relayswarm[lightning]`.

    with relayswarm.Swarm(module, module.optimizer, "coordinator.example:50050") as swarm:
        trainer = lightning.Trainer(max_epochs=-1, callbacks=[SwarmCallback(swarm)])
        trainer.fit(module, mine(swarm.site))

`module.configure_optimizers()` returns `module.optimizer`.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from relayswarm.swarm import Swarm


class SwarmCallback(Callback):  # type: ignore[misc]
    """Exchanges models after each optimizer step of a Trainer, and ends training with the run.

    `swarm` has the module and its one optimizer; leaving it is left to its `with` block, in which
    `trainer.fit()` stands: so an error in training leaves the swarm, too.
    """

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self._steps = 0  # that the Trainer has taken

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """It may go on from a checkpoint of its own."""
        self._steps = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Exchange if the batch was the last of an optimizer step."""
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self.swarm.exchange(loss=loss)
            trainer.should_stop = trainer.should_stop or self.swarm.finished
