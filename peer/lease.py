"""A member's place in the swarm: the lease that keeps it, and the views that come with it.

What belongs here: what a member says to its coordinator and hears from it, and which trees it takes
up while there is none. How it trains in them is in `peer.daemon`.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import CancelledError
from functools import partial

from coordinator.member_metrics import Sample
from peer import metric_snapshot
from peer.algorithms.core import PeerId, View
from peer.config import is_pairwise
from peer.healing import Timers
from peer.hellos import Commit, Seat
from peer.parts import Parts, PeerOptions
from peer.self_healing import SelfHealing, Surroundings
from peer.transport.bpdus import Greeter
from peer.transport.coordinator_client import (
    CoordinatorClient,
    Joined,
    JoinInfo,
    NoAnswerError,
    Renewal,
)
from relayswarm import logs
from relayswarm.errors import JoinError

log = logging.getLogger("relayswarm.peer")


def candidacy(options: PeerOptions, incarnation: int, peer_id: PeerId, step: int) -> JoinInfo:
    """What a peer says that asks for the run config, an id and a shard, and who has a model to
    give: it has done `step` steps itself."""
    return JoinInfo(
        incarnation,
        peer_id=peer_id,
        dial_only=options.dial_only,
        step=step,
        weight=0.0 if options.forwards else 1.0,  # which decides about a shard
    )


class Lease:
    """One peer's membership, from `take` to `leave`; it renews itself, in a thread of its own."""

    def __init__(self, client: CoordinatorClient, incarnation: int, parts: Parts) -> None:
        self.ever: set[PeerId] = set()  # the members of all views
        self._client, self._incarnation, self._parts = client, incarnation, parts
        self._options, self._daemon = parts.options, parts.daemon
        self._lease_s = 0.0
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._view: View | None = None  # the newest, whoever made it; under the guard
        self._away_since: float | None = None  # the coordinator
        self._snapshot_at = 0.0  # when it is told of our metrics next

    def take(self) -> None:
        """Become a member, and stay one until `end`. Raises JoinError."""
        self._lease_s = self._seat()
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def heal(self) -> None:
        """Repair the tree together with the neighbours while there is no coordinator."""
        config, daemon = self._parts.trainer.config, self._daemon
        timers = Timers(config.topology.hello_s, config.topology.max_age_s)
        daemon.healing = SelfHealing(
            Seat(daemon.peer, self._incarnation, self._parts.address, self._parts.weight),
            timers,
            config.coordinator.lease_s,
            Greeter(config.run_id, self._options.security, timers.max_age_s),
            Surroundings(
                step=lambda: daemon.algorithm.step,
                has_lost=lambda: bool(daemon.down),
                ask_coordinator=daemon.news.set,
                adopt=self._adopt,
                failed=daemon.fail,
            ),
        )
        daemon.healing.start()

    def end(self) -> None:
        """Renew no more, nor join again when told that there is no lease any more."""
        self._ended.set()

    def leave(self, *, finished: bool) -> None:
        """Say goodbye, and before that tell how far this peer has come."""
        self._client.renew(self._renewal())
        self._client.leave(self._daemon.peer, self._incarnation, finished=finished)

    # --- the lease ---------------------------------------------------------------------------

    def _seat(self) -> float:
        """Become a member, or become one again; returns the length of the lease, seconds."""
        daemon = self._daemon
        joined = self._client.join(
            JoinInfo(
                self._incarnation,
                peer_id=daemon.peer,
                address=self._parts.address,
                dial_only=self._options.dial_only,
                metrics_address=self._parts.metrics_address,
                fingerprint=self._parts.trainer.fingerprint,
                step=daemon.steps_done,
                known_epoch=self._view.epoch if self._view else None,
                resume_points=frozenset() if self._view else self._parts.resume_points,
                tree=daemon.healing.commit if daemon.healing else None,
                weight=self._parts.weight,
            ),
            self._options.patience_s,
        )

        def on_view(view: View, addresses: dict[PeerId, str]) -> None:
            if self._take_view(view, addresses):
                self._hand_on()
                if daemon.healing:
                    daemon.healing.viewed(view, addresses)

        def on_waiting(present: int, needed: int) -> None:
            daemon.announce("waiting", peer=daemon.peer, present=present, needed=needed)

        def on_no_tree(text: str) -> None:
            daemon.fail(JoinError(text))

        self._client.watch(
            joined.peer_id,
            self._incarnation,
            on_view=on_view,
            on_waiting=on_waiting,
            on_no_tree=on_no_tree,
            on_failed=daemon.fail,
            on_stop=daemon.stop_before,
            on_progress=lambda progress: daemon.pace.told(progress, daemon.algorithm.step),
        )
        return joined.lease_s

    def _run(self) -> None:
        """The thread's top boundary. Without it a peer would train on, and be given up."""
        try:
            self._renew()
        except Exception as error:  # noqa: BLE001
            self._daemon.fail(error)

    def _renew(self) -> None:
        """Keep the lease alive and say how it goes; join again if the swarm has let us go."""
        news = self._daemon.news  # a neighbour that died is reported without delay
        while not self._ended.is_set():
            news.wait(min(1.0, self._lease_s / 3))
            news.clear()
            if self._ended.is_set():
                return
            renewal = self._renewal()
            told = partial(self._daemon.pace.told, own=renewal.state.step)
            lease_s = self._client.renew(renewal, told)
            if self._daemon.healing:
                self._daemon.healing.away(self._away_s())
            if lease_s is not None:
                self._lease_s = lease_s
            elif not self._ended.is_set():
                self._rejoin()

    def _away_s(self) -> float | None:
        """For how long the coordinator has been away, seconds; None if it is not."""
        if not self._client.is_away:
            self._away_since = None
            return None
        self._away_since = self._away_since or time.monotonic()
        return time.monotonic() - self._away_since

    def _renewal(self) -> Renewal:
        daemon = self._daemon
        return Renewal(
            self._incarnation,
            daemon.state(),
            unreachable=daemon.down,
            tree=daemon.healing.commit if daemon.healing else None,
            metrics=self._snapshot(),
            evaluation=daemon.swarm.own,
        )

    def _snapshot(self) -> tuple[Sample, ...] | None:
        """What the coordinator is told of our metrics, if it is time to."""
        now = time.monotonic()
        if now < self._snapshot_at:
            return None
        self._snapshot_at = now + metric_snapshot.EVERY_S
        return metric_snapshot.snapshot(self._daemon.metrics.registry)

    def _rejoin(self) -> None:
        text = "this peer's lease has run out: joining again"
        logs.event(log, logging.WARNING, "lease_expired", text)
        self._daemon.metrics.lease_expiries.inc()
        try:
            candidate = self._ask()
            if candidate.donors:  # else a coordinator without memory asks, and nothing else changes
                self._start_over(candidate)
            self._lease_s = self._seat()
            if self._ended.is_set():  # it has left meanwhile, and may have been heard before this
                self._client.leave(self._daemon.peer, self._incarnation)
        except CancelledError:
            log.info("the end came before this peer could join again")
        except NoAnswerError:
            log.warning("the coordinator is away again: joining once it is back")
        except JoinError as error:
            self._daemon.fail(error)

    def _ask(self) -> Joined:
        """Where the swarm is, and who has a model to give."""
        peer, step = self._daemon.peer, self._daemon.steps_done
        info = candidacy(self._options, self._incarnation, peer, step)
        return self._client.join(info, self._options.patience_s)

    def _start_over(self, candidate: Joined) -> None:
        """The swarm has gone on without us: be a newcomer, with its model where it is further."""
        step, vector = 0, None
        try:
            found = self._parts.ask_donors(candidate)
        except JoinError as error:
            log.warning("going on with this peer's own model: %s", error)
        else:
            step, vector = found.step, found.vector
        self._daemon.start_over(step, vector).result()

    # --- views -------------------------------------------------------------------------------

    def _take_view(self, view: View, addresses: dict[PeerId, str]) -> bool:
        """Whether the view is newer than all before it, of coordinators and of roots."""
        with self._guard:
            if self._view and view.epoch.age <= self._view.epoch.age:
                return False
            self._view = view
            self.ever.update(view.members)
            self._parts.viewed(view, addresses)
            return True

    def _hand_on(self) -> None:
        """Hand the newest view to the daemon. Two threads take views, and one of them may be late
        with its own: the daemon is to end up with the other's."""
        with self._guard:
            assert self._view is not None, "one has been taken"
            self._daemon.viewed(self._view)

    def _adopt(self, commit: Commit) -> None:
        """Take up a tree that its root has committed; far behind the furthest of its members, go on
        from their step, with the model as it is."""
        from peer.views import committed_view  # needs a graph library, which takes time to load

        config, daemon = self._parts.trainer.config, self._daemon
        view = committed_view(config, commit, daemon.peer)
        if not self._take_view(view, {s.peer: s.address for s in commit.members}):
            return
        step = min(commit.step, config.steps)
        text = f"epoch {view.epoch.term}.{view.epoch.number} from step {view.effective_step}: "
        text += f"{commit.n} peers, root {commit.root}, committed without a coordinator"
        fields = {"root": commit.root, "effective_step": view.effective_step}
        logs.event(log, logging.INFO, "tree_committed", text, members=commit.n, **fields)
        daemon.announce(
            "tree_committed",
            peer=daemon.peer,
            epoch={"term": view.epoch.term, "number": view.epoch.number},
            members=[seat.peer for seat in commit.members],
            edges=[list(edge) for edge in commit.tree],
            step=commit.step,
            **fields,
        )
        if daemon.algorithm.step + commit.n >= step or is_pairwise(config.algorithm.name):
            self._hand_on()  # pairs have no step in common
            return
        begun = daemon.start_over(step, None)
        begun.add_done_callback(lambda _: self._hand_on())
