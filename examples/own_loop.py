"""Learn handwritten digits together with others, in a plain PyTorch loop.

Its only argument is where the coordinator listens; start as many of these as the run has peers.
"""

import sys

import torch
from sklearn.datasets import load_digits

import relayswarm

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
x, y, test_x, test_y = x[:1400], y[:1400], x[1400:], y[1400:]

torch.manual_seed(0)  # all begin with equal models
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def evaluate(model):
    right = model(test_x).argmax(dim=1) == test_y
    return {"accuracy": relayswarm.Measured(float(right.float().mean()), weight=len(right))}


with relayswarm.Swarm(model, optimizer, sys.argv[1], evaluate=evaluate) as swarm:
    mine = torch.tensor(relayswarm.partition(labels[:1400], swarm.site).shards[swarm.site.shard])
    while not swarm.finished:
        batch = mine[torch.randint(len(mine), (32,))]
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        swarm.step(loss=loss)  # in the place of optimizer.step()

print(f"{swarm.peer_id} accuracy {float(evaluate(model)['accuracy'].value):.3f}, {swarm.means()}")
