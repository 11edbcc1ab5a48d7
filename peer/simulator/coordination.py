"""The coordinator's part in a simulated swarm whose peers crash and come back.

Membership's own state machine on the virtual clock: peers renew their leases and tell whom they
cannot reach, an epoch is laid out and published when it says so. Everyone can reach the
coordinator at any time; a request and its answer take no time, a new view `VIEW_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.graph_files import LabelledGraph
from coordinator.members import (
    Admitted,
    Decision,
    Elected,
    Event,
    Join,
    Leave,
    Renew,
    RunState,
    Tick,
)
from coordinator.membership import Membership
from coordinator.rules import rules_of
from coordinator.views import lay_out
from peer.algorithms.core import NewView, PeerId, View
from peer.simulator.world import World
from peer.views import FIRST_TERM, topology_event, views_of
from relayswarm.config import RunConfig

VIEW_S = 0.001  # virtual, until a new epoch's view is with a peer
PORT = 1  # addresses are made of peer ids: nobody connects to them

Tell = Callable[[dict[str, Any]], None]


@dataclass
class Coordination:
    """Membership of one simulated swarm.

    `fingerprint` is that of the run's model, `weights` what its peers weigh. `incarnations` are the
    lives of the peers so far.
    """

    config: RunConfig
    world: World
    fingerprint: int
    tell: Tell
    file_graph: LabelledGraph | None = None
    weights: Mapping[PeerId, float] = field(default_factory=dict)
    incarnations: dict[PeerId, int] = field(default_factory=dict)
    membership: Membership = field(init=False)
    _due: float | None = None

    def __post_init__(self) -> None:
        rules = replace(rules_of(self.config), wire_format=None)  # all are of this release
        self.membership = Membership(rules, self.world.now, term=FIRST_TERM)

    def ask(self, peer: PeerId) -> tuple[int, tuple[PeerId, ...]] | None:
        """The peer asks to come back: its shard, and whom it can get the model from (nobody: the
        run has not begun), or None if it is refused."""
        self.incarnations[peer] = self.incarnations.get(peer, 0) + 1
        weight = self.weights.get(peer, 1.0)
        answer = self._handle(Join(self.incarnations[peer], peer_id=peer, weight=weight))[0]
        if not isinstance(answer, Admitted):
            return None
        return answer.member.shard, tuple(donor.peer_id for donor in answer.donors)

    def join(self, peer: PeerId, step: int = 0) -> None:
        """The peer becomes a member and keeps its lease from now on."""
        incarnation = self.incarnations.setdefault(peer, 1)
        self._handle(
            Join(
                incarnation,
                address=f"{peer}:{PORT}",
                peer_id=peer,
                fingerprint=self.fingerprint,
                step=step,
                weight=self.weights.get(peer, 1.0),
            )
        )
        self._renew_later(peer, incarnation)

    def _renew_later(self, peer: PeerId, incarnation: int) -> None:
        at = self.world.now + self.membership.rules.renew_every_s
        self.world.at(at, lambda: self._renew(peer, incarnation))

    def _renew(self, peer: PeerId, incarnation: int) -> None:
        node = self.world.nodes[peer]
        if not node.alive or incarnation != self.incarnations[peer]:
            return
        done = node.finished_at is not None
        state = RunState.FINISHED.value if done else "training"
        down = frozenset(node.down)
        step = node.algorithm.step
        self._handle(Renew(peer, incarnation, step=step, state=state, unreachable=down))
        if done and self.world.now - (node.finished_at or 0) > self.config.transport.linger_s:
            self._handle(Leave(peer, incarnation, finished=True))
            return
        self._renew_later(peer, incarnation)

    def _handle(self, event: Event) -> list[Decision]:
        decisions = self.membership.handle(event, self.world.now)
        for decision in decisions:
            if isinstance(decision, Elected):
                self._publish(decision)
        self._wake()
        return decisions

    def _wake(self) -> None:
        """Be back for a Tick when membership wants one."""
        deadline = self.membership.next_deadline()
        if deadline is None or deadline == self._due:
            return
        self._due = deadline

        def tick() -> None:
            if self._due == deadline:
                self._due = None
                self._handle(Tick())

        self.world.at(max(deadline, self.world.now), tick)

    def _publish(self, elected: Elected) -> None:
        weights = {member.peer_id: member.weight for member in elected.members}
        incarnations = {member.peer_id: member.incarnation for member in elected.members}
        layout = lay_out(self.config, [*weights], self.file_graph, weights)
        self.membership.published(layout.neighbourhoods())
        correct_lr = self.config.optimizer.relay_lr_correction
        for view in views_of(layout, correct_lr=correct_lr, elected=elected):
            self._deliver(view, incarnations)
        self.tell(topology_event(layout, elected))

    def _deliver(self, view: View, incarnations: Mapping[PeerId, int]) -> None:
        def arrive() -> None:
            if self.incarnations[view.me] == incarnations[view.me]:
                self.world.nodes[view.me].feed(NewView(view))

        self.world.at(self.world.now + VIEW_S, arrive)
