"""Learn handwritten digits together with others, with the Trainer of Lightning.

Its only argument is where the coordinator listens; start as many of these as the run has peers.
"""

import sys

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import relayswarm
from relayswarm.integrations.lightning import SwarmCallback

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
x, y, test_x, test_y = x[:1400], y[:1400], x[1400:], y[1400:]


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def configure_optimizers(self):
        return self.optimizer

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])


def evaluate(module):
    right = module.layers(test_x).argmax(dim=1) == test_y
    return {"accuracy": relayswarm.Measured(float(right.float().mean()), weight=len(right))}


lightning.seed_everything(0, verbose=False)  # all begin with equal models
module = Classifier()
with relayswarm.Swarm(module, module.optimizer, sys.argv[1], evaluate=evaluate) as swarm:
    mine = torch.tensor(relayswarm.partition(labels[:1400], swarm.site).shards[swarm.site.shard])
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        callbacks=[SwarmCallback(swarm)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x[mine], y[mine]), batch_size=32, shuffle=True))

print(f"{swarm.peer_id} accuracy {float(evaluate(module)['accuracy'].value):.3f}")
