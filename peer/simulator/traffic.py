"""What a simulated run cost: models and bytes that crossed the network, gradients, virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

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

    `message_rounds_per_step` is the length of the longest chain of messages that somebody had to
    wait for (`world.Node.depth`), divided by the steps. `gradient_evaluations` are those of all
    peers together, one for each optimizer step. `messages_by_bits` are those on the
    lattice and of pairwise methods, by the bits of an element (0: full precision), each try of a
    message for itself.
    """

    virtual_seconds: float
    models_sent_per_step: PerStep
    models_received_per_step: PerStep
    bytes_sent: int
    message_rounds_per_step: float
    gradient_evaluations: int
    messages_by_bits: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Sized(Protocol):
    """A vector, as far as traffic goes."""

    def numel(self) -> int:
        """Number of elements."""


class Meter:
    """Counts for each peer, over all its lives, what it sent and received: `world.Traffic`."""

    def __init__(self, elements: int, wire_format: Format | None) -> None:
        """`elements` are those of a whole model, shape (elements,). Without a format elements have
        no size of their own, and `wrote` is told of bytes."""
        self._elements = elements
        self._itemsize = wire_format.itemsize if wire_format else 0
        self.messages_sent: Counter[PeerId] = Counter()
        self.messages_retried: Counter[PeerId] = Counter()
        self._elements_sent: Counter[PeerId] = Counter()
        self._elements_received: Counter[PeerId] = Counter()
        self._bytes_written: Counter[PeerId] = Counter()
        self._steps: Counter[PeerId] = Counter()
        self.local_steps: Counter[PeerId] = Counter()
        self._by_bits: Counter[str] = Counter()

    def sent(self, sender: PeerId, to: PeerId, payload: tuple[Sized, ...]) -> None:  # noqa: ARG002
        self.messages_sent[sender] += 1
        self._elements_sent[sender] += _size(payload)

    def received(self, sender: PeerId, to: PeerId, payload: tuple[Sized, ...]) -> None:  # noqa: ARG002
        self._elements_received[to] += _size(payload)

    def retried(self, sender: PeerId) -> None:
        """One of its messages has to go again."""
        self.messages_retried[sender] += 1

    def wrote(self, sender: PeerId, bits: int, count: int) -> None:
        """It sent a message of so many bytes, with so many bits an element."""
        self._by_bits[str(bits)] += 1
        self._bytes_written[sender] += count

    def counts(self) -> tuple[Counter[PeerId], ...]:
        """A copy of everything counted so far."""
        return tuple(Counter(counter) for counter in self._counters)

    def add(self, counts: Iterable[Counter[PeerId]], times: int) -> None:
        """Count once more, so many times, what `counts` (made like `counts()`) hold."""
        for counter, more in zip(self._counters, counts, strict=True):
            for peer, count in more.items():
                counter[peer] += times * count

    @property
    def _counters(self) -> tuple[Counter[PeerId], ...]:
        messages = (self.messages_sent, self.messages_retried)
        elements = (self._elements_sent, self._elements_received)
        return (*messages, *elements, self._bytes_written, self._steps, self.local_steps)

    def trained(self, peer: PeerId, local_steps: int) -> None:
        """It took so many local steps, those of one step."""
        self._steps[peer] += 1
        self.local_steps[peer] += local_steps

    def bytes_sent(self, peer: PeerId) -> int:
        """By one peer so far."""
        return self._elements_sent[peer] * self._itemsize + self._bytes_written[peer]

    def cost(self, virtual_seconds: float, message_rounds: int) -> Cost:
        """The sum of it all; `message_rounds` are those of the whole run."""
        steps = max(self._steps.values(), default=1)
        return Cost(
            virtual_seconds=virtual_seconds,
            models_sent_per_step=self._per_step(self._elements_sent),
            models_received_per_step=self._per_step(self._elements_received),
            bytes_sent=sum(self.bytes_sent(peer) for peer in self._steps),
            message_rounds_per_step=message_rounds / steps,
            gradient_evaluations=self.local_steps.total(),
            messages_by_bits=dict(self._by_bits),
        )

    def _per_step(self, elements: Counter[PeerId]) -> PerStep:
        steps = self._steps
        models = {peer: elements[peer] / self._elements for peer in steps}
        mean = sum(models.values()) / max(steps.total(), 1)
        return PerStep(mean, max((models[peer] / steps[peer] for peer in steps), default=0.0))


def _size(payload: Sequence[Sized]) -> int:
    return payload[0].numel() if len(payload) == 1 else sum(vector.numel() for vector in payload)
