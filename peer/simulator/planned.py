"""The fault plan of a run, in a simulated world: its network, and who dies and comes back when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from peer.algorithms.core import Head, PeerId, Train
from peer.faults import FaultPlan
from peer.simulator.world import Delivery, World
from relayswarm.config import CrashFault

LATENCY_S = 0.001  # virtual

_AS_USUAL = (Delivery(LATENCY_S),)


class PlannedLink:
    """The in-memory network with the plan's losses, delays and duplicates."""

    def __init__(self, plan: FaultPlan) -> None:
        self._plan = plan
        self._is_idle = not plan.touches_messages

    def __call__(self, sender: PeerId, to: PeerId, head: Head) -> Sequence[Delivery]:
        if self._is_idle:
            return _AS_USUAL
        fate = self._plan.fate(head.step, head.ordinal, head.tree, sender, to)
        if fate.lost:
            return (Delivery(LATENCY_S, lost=True),) if self._plan.announced else ()
        return [Delivery(LATENCY_S + late_s) for late_s in fate.delays_s]


class Crashes:
    """Kills peers when their time has come, and lets `come_back` know when they return.

    `on_crash` hears of each death. A crash at a step comes when its peer begins that step, or, if
    it jumps over it, the next one.
    """

    def __init__(
        self,
        plan: FaultPlan,
        world: World,
        on_crash: Callable[[PeerId], None],
        come_back: Callable[[PeerId], None],
    ) -> None:
        self._plan = plan
        self._world = world
        self._on_crash = on_crash
        self._come_back = come_back
        self._at_step: dict[PeerId, list[CrashFault]] = {}
        self.awaited: set[PeerId] = set()  # they are away and will be back

    def schedule(self, peer: PeerId) -> None:
        """Look to the crashes of a peer, at the start of the run."""
        crashes = self._plan.crashes(peer)
        self._at_step[peer] = [crash for crash in crashes if crash.at_step is not None]
        for crash in crashes:
            if crash.at_s is not None:
                self._world.at(crash.at_s, partial(self._crash, peer, crash))

    def begins(self, peer: PeerId, effect: Train) -> None:
        """The peer begins its local steps."""
        due = [crash for crash in self._at_step[peer] if effect.step >= (crash.at_step or 0)]
        for crash in due[:1]:
            self._at_step[peer].remove(crash)
            self._crash(peer, crash)

    def _crash(self, peer: PeerId, crash: CrashFault) -> None:
        node = self._world.nodes[peer]
        if not node.alive or node.finished_at is not None:
            return
        self._world.crash(peer)
        self._on_crash(peer)
        if crash.rejoin_after_s is not None:
            self.awaited.add(peer)
            self._world.at(self._world.now + crash.rejoin_after_s, partial(self._return, peer))

    def _return(self, peer: PeerId) -> None:
        self.awaited.discard(peer)
        self._come_back(peer)
