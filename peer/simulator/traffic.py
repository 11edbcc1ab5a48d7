"""What a simulated run cost: models and bytes that crossed the network, gradients, virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from peer.algorithms.core import PeerId
from peer.codec import Format


@dataclass(frozen=True, slots=True)
class PerStep:
    """Models per step of a peer: the mean over all peers, and the busiest peer's."""

    mean: float
    largest: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run took. Half a model on one of two trees counts as half; `bytes_sent` are payload.

    `gradient_evaluations` are those of all peers together, one for each optimizer step.
    """

    virtual_seconds: float
    models_sent_per_step: PerStep
    models_received_per_step: PerStep
    bytes_sent: int
    gradient_evaluations: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Meter:
    """Counts for each peer, over all its lives, what it sent and received: `world.Traffic`."""

    def __init__(self, elements: int, wire_format: Format, local_steps: int) -> None:
        """`elements` are those of a whole model, shape (elements,)."""
        self._elements = elements
        self._itemsize = wire_format.itemsize
        self._local_steps = local_steps
        self.messages_sent: Counter[PeerId] = Counter()
        self._elements_sent: Counter[PeerId] = Counter()
        self._elements_received: Counter[PeerId] = Counter()
        self._steps: Counter[PeerId] = Counter()

    def sent(self, sender: PeerId, to: PeerId, payload: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        self.messages_sent[sender] += 1
        self._elements_sent[sender] += _size(payload)

    def received(self, sender: PeerId, to: PeerId, payload: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        self._elements_received[to] += _size(payload)

    def trained(self, peer: PeerId) -> None:
        """It took the local steps of one step."""
        self._steps[peer] += 1

    def bytes_sent(self, peer: PeerId) -> int:
        """By one peer so far."""
        return self._elements_sent[peer] * self._itemsize

    def cost(self, virtual_seconds: float) -> Cost:
        """The sum of it all."""
        return Cost(
            virtual_seconds=virtual_seconds,
            models_sent_per_step=self._per_step(self._elements_sent),
            models_received_per_step=self._per_step(self._elements_received),
            bytes_sent=self._elements_sent.total() * self._itemsize,
            gradient_evaluations=self._steps.total() * self._local_steps,
        )

    def _per_step(self, elements: Counter[PeerId]) -> PerStep:
        steps = self._steps
        models = {peer: elements[peer] / self._elements for peer in steps}
        mean = sum(models.values()) / max(steps.total(), 1)
        return PerStep(mean, max((models[peer] / steps[peer] for peer in steps), default=0.0))


def _size(payload: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in payload)
