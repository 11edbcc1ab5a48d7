"""What a neighbour learns of a site's data from one movement, with more local steps and with noise.

    python benchmarks/leakage.py           half a minute

The neighbour of a leaf has the leaf's exact movement of each step (tests/peer/simulator/
test_leakage.py). Here the model is one softmax layer on the digits, which starts from zero, and
each local step is on a batch of one, the easiest case for who looks on: of the gradient of a sample
(x, y) the row of class c is (p_c - [c = y]) x. So the bias moved up for y alone, and x is the
movement of that row's weights over that of its bias. Attacked are movements as they are, of more
local steps, and clipped with noise (`privacy.clip`, `privacy.noise_multiplier`, by the code that
daemons run). A row is of `--trials` movements:

label      the class whose bias moved up most is that of one of the samples; `blind` is how often
           any class would be
image      correlation of the reconstruction with the sample that it is most like, the median; a
           blind guess is the mean of all images
movement   correlation of the movement that is seen with the one that was made, the median
"""

from __future__ import annotations

import argparse
import statistics
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from peer.tasks.registry import load_task
from peer.training.movement import movement_of
from relayswarm.config import PrivacyConfig, TaskConfig
from relayswarm.task import Site

LR, CLASSES = 0.1, 10


class Case(NamedTuple):
    """A row: local steps before what is seen, and the noise; the clipping norm is such that about
    every movement of one step is clipped."""

    local_steps: int
    noise_multiplier: float | None = None

    @property
    def privacy(self) -> PrivacyConfig:
        if self.noise_multiplier is None:
            return PrivacyConfig()
        return PrivacyConfig(clip=0.1, noise_multiplier=self.noise_multiplier)


CASES = (
    *(Case(steps) for steps in (1, 2, 8, 32)),
    *(Case(1, noise) for noise in (0.0, 0.01, 0.1, 0.5, 1.0)),
    Case(8, 0.1),
)


class Seen(NamedTuple):
    """What came of one attack."""

    label: bool
    blind: float
    image: float
    movement: float


def movement(case: Case, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The movement of the flat vector that was made, and the one that is seen; shape (d,)."""
    layer = nn.Linear(x.shape[1], CLASSES)
    vector = torch.zeros(sum(p.numel() for p in layer.parameters()))
    nn.utils.vector_to_parameters(vector.clone(), layer.parameters())
    for k in range(case.local_steps):
        layer.zero_grad()
        functional.cross_entropy(layer(x[k : k + 1]), y[k : k + 1]).backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.sub_(LR * parameter.grad)
    live = nn.utils.parameters_to_vector(layer.parameters()).detach().clone()
    made = live - vector
    mechanism = movement_of(case.privacy, (), None)
    if mechanism is not None:
        mechanism.release(vector.clone(), live, 0)
    return made, live - vector


def attack(case: Case, x: Tensor, y: Tensor) -> Seen:
    """Look at the movement of local steps on these samples, in order."""
    made, seen = movement(case, x, y)
    weights, bias = seen[:-CLASSES].view(CLASSES, -1), seen[-CLASSES:]
    guess = int(bias.argmax())
    image = weights[guess] / bias[guess]
    likeness = max(correlation(image, sample) for sample in x[: case.local_steps])
    labels = set(y[: case.local_steps].tolist())
    return Seen(guess in labels, len(labels) / CLASSES, likeness, correlation(made, seen))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def measure(case: Case, x: Tensor, y: Tensor, trials: int) -> tuple[float, ...]:
    """Part of labels, seen and blind, and median correlations of images and movements."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(trials):
        chosen = torch.randperm(len(x), generator=generator)[: case.local_steps]
        found.append(attack(case, x[chosen], y[chosen]))
    labels, blind, images, movements = zip(*found, strict=True)
    seen, guessed = sum(labels) / trials, sum(blind) / trials
    return seen, guessed, statistics.median(images), statistics.median(movements)


def digits() -> tuple[Tensor, Tensor]:
    """Images as rows, and labels, of the whole training set."""
    data = load_task(TaskConfig()).data(Site(shard=0, shards=1, seed=0, alpha=None, min_samples=1))
    x, y = data.batch(range(len(data)))
    return x.flatten(1) / 16, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    trials = parser.parse_args().trials
    torch.set_num_threads(1)
    x, y = digits()
    blind = statistics.median(correlation(x.mean(0), sample) for sample in x[:trials])
    print(f"blind guess of an image: {blind:.2f}\n")
    print("| local steps | noise multiplier | label | blind | image | movement |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        label, guessed, image, moved = measure(case, x, y, trials)
        noise = "off" if case.noise_multiplier is None else f"{case.noise_multiplier:g}"
        print(
            f"| {case.local_steps} | {noise} | {label:.0%} | {guessed:.0%} "
            f"| {image:.2f} | {moved:.2f} |"
        )


if __name__ == "__main__":
    main()
