"""Clipping: how far a neighbour's message may move a peer (He, Karimireddy, Jaggi 2022).

"Byzantine-robust decentralized learning via ClippedGossip" mixes with x_i + clip(x_j - x_i, tau) in
place of x_j, where clip(v, tau) = min(1, tau / ||v||) v: whatever x_j is, it moves x_i by no more
than its weight times tau. Here a message m of c models is taken for

    c (x + clip(m / c - x, tau))

with x this peer's own vector at that moment: for gossip and pairs c is 1, for the sums of RelaySGD
it is their count, or what the models in them weigh. So a sum moves a peer by no more than
c tau / n, on each of two trees, and is held in the same way when it is relayed. One that is near
enough is used as it is, bit for bit.

The core does no arithmetic: a method says which messages are held (`clipped`), and the driver
measures the distance and writes the combination out (`plain`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from peer.algorithms.core import Coef, Lin, Message, Reg


@dataclass(frozen=True, slots=True)
class Clipped(Message):
    """A message's vector, held to `radius` from `center` for each model in it."""

    center: Reg = field(kw_only=True)
    radius: Coef = field(kw_only=True)
    models: Coef = field(kw_only=True)  # c, how many are summed in it

    @property
    def difference(self) -> Lin:
        """m / c - x"""
        return Lin(((1, self), (-self.models, self.center)), self.models)


def clipped(message: Message, center: Reg, radius: Coef | None, models: Coef = 1) -> Message:
    """The message, a sum of so many `models`, held to `radius` from `center`, if there is one."""
    if radius is None:
        return message
    head, section, payload = message.head, message.section, message.payload
    return Clipped(head, section, payload, center=center, radius=radius, models=models)


def plain(lin: Lin, norm: Callable[[Lin], float]) -> Lin:
    """The same combination of plain messages and registers, now that `norm` tells how far apart
    they are. What is infinitely far is not used at all."""
    if not is_clipped(lin):
        return lin
    terms: list[tuple[Coef, Reg | Message]] = []
    for coef, ref in lin.terms:
        far = norm(ref.difference) if isinstance(ref, Clipped) else 0.0
        if isinstance(ref, Clipped) and far > ref.radius:
            share = float(ref.radius) / far
            terms += [(coef * share, ref), (coef * ref.models * (1 - share), ref.center)]
        else:
            terms.append((coef, ref))
    return Lin(tuple(terms), lin.divisor)


def is_clipped(lin: Lin) -> bool:
    """Whether there is anything to measure in it."""
    for _, ref in lin.terms:  # noqa: SIM110 - every combination of every run comes by
        if type(ref) is Clipped:
            return True
    return False
