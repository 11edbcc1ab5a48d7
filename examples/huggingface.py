"""Learn handwritten digits together with others, with the Trainer of Hugging Face Transformers.

Its only argument is where the coordinator listens; start as many of these as the run has peers.
"""

import sys
import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

import relayswarm
from relayswarm.integrations.transformers import SwarmCallback

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
x, y, test_x, test_y = x[:1400], y[:1400], x[1400:], y[1400:]

set_seed(0)  # all begin with equal models
shape = ViTConfig(
    image_size=8,
    patch_size=4,
    num_channels=1,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_labels=10,
)
model = ViTForImageClassification(shape)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)


def evaluate(model):
    right = model(test_x).logits.argmax(dim=1) == test_y
    return {"accuracy": relayswarm.Measured(float(right.float().mean()), weight=len(right))}


with (
    tempfile.TemporaryDirectory() as folder,
    relayswarm.Swarm(model, optimizer, sys.argv[1], evaluate=evaluate) as swarm,
):
    mine = relayswarm.partition(labels[:1400], swarm.site).shards[swarm.site.shard]
    arguments = TrainingArguments(
        folder,
        max_steps=swarm.config.steps * swarm.config.algorithm.local_steps,
        per_device_train_batch_size=32,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(
        model,
        arguments,
        train_dataset=[{"pixel_values": x[k], "labels": y[k]} for k in mine],
        optimizers=(optimizer, None),
        callbacks=[SwarmCallback(swarm)],
    ).train()

print(f"{swarm.peer_id} accuracy {float(evaluate(model.eval())['accuracy'].value):.3f}")
