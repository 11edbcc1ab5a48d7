"""A peer's life from start to end: join, serve, train, linger, leave.

What belongs here: what a peer says to its coordinator and to its user, and when. What it consists
of is in `peer.parts`; what happens while it trains, in `peer.daemon`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress

from peer.algorithms.core import PeerId, View
from peer.announce import Announcer
from peer.config import build_algorithm
from peer.daemon import Daemon, Stop
from peer.metrics import PeerMetrics, value
from peer.parts import Parts, PeerOptions
from peer.process import keep_freed_memory
from peer.training.files import require_writable
from peer.transport.coordinator_client import (
    CoordinatorClient,
    Joined,
    JoinInfo,
    NoAnswerError,
    Renewal,
)
from relayswarm import logs
from relayswarm.errors import ExitCode, JoinError, OutOfMemoryError

log = logging.getLogger("relayswarm.peer")

SETTLE_S = 1.0  # for answers to the last messages, so that the report counts them


def run(options: PeerOptions) -> int:
    """Be a peer until the run is over or somebody ends it; returns the exit code.

    Raises RelayswarmError for what the user can mend. SIGTERM and SIGINT end it gracefully: the
    local step under way comes to its end, a checkpoint is written, the swarm is told.
    """
    keep_freed_memory()
    return Peer(options).live()


class Peer:
    """One peer daemon and all its parts."""

    def __init__(self, options: PeerOptions) -> None:
        self.options = options
        self.announce = Announcer(speaks=options.json_events)
        self.metrics = PeerMetrics()
        self.client = CoordinatorClient(options.coordinator, options.security)
        self._incarnation = time.time_ns()
        self._signal: int | None = None
        self._daemon: Daemon | None = None
        self._lingers = False
        self._ended = threading.Event()

    def live(self) -> int:
        """From joining to leaving; returns the exit code."""
        if self.options.state_dir is not None:
            require_writable(self.options.state_dir, "--state-dir")
        self._take_signals()
        try:
            candidate = self._join(self.options.peer_id)
            with Parts(self.options, candidate, self.metrics, self.announce) as parts:
                self._daemon = parts.daemon
                _log_as(parts.daemon, candidate.run_id)
                return self._be_member(parts)
        except _Interrupted:
            return self._exit_code()
        finally:
            self.client.close()

    # --- being a member ----------------------------------------------------------------------

    def _be_member(self, parts: Parts) -> int:
        self._lease_s = self._seat(parts)
        threading.Thread(target=self._renew, args=(parts,), name="lease", daemon=True).start()
        try:
            parts.daemon.run()
        except Stop:
            self._leave_early(parts)
            return self._exit_code()
        except JoinError:
            self._end_training(parts)
            raise
        except OutOfMemoryError:  # the model may have done half a step: it is not kept
            self._ended.set()
            self._say_goodbye(parts, finished=False)
            raise
        finally:
            parts.daemon.close()
        self._finish(parts)
        return ExitCode.DONE

    def _join(self, peer_id: PeerId) -> Joined:
        """Learn the run config, id and shard, and who has a model to give."""
        info = JoinInfo(self._incarnation, peer_id=peer_id)
        return self.client.join(info, self.options.patience_s)

    def _seat(self, parts: Parts) -> float:
        """Become a member, or become one again; returns the length of the lease, seconds."""
        daemon = parts.daemon
        joined = self.client.join(
            JoinInfo(
                self._incarnation,
                peer_id=daemon.peer,
                address=parts.address,
                metrics_address=parts.metrics_address,
                fingerprint=parts.trainer.fingerprint,
                step=daemon.steps_done,
                known_epoch=daemon.view.epoch if daemon.view else None,
            ),
            self.options.patience_s,
        )

        def on_view(view: View, addresses: dict[PeerId, str]) -> None:
            others = {peer: where for peer, where in addresses.items() if peer != daemon.peer}
            parts.outbox.set_addresses(others)
            daemon.viewed(view)

        def on_waiting(present: int, needed: int) -> None:
            self.announce("waiting", peer=daemon.peer, present=present, needed=needed)

        self.client.watch(joined.peer_id, self._incarnation, on_view=on_view, on_waiting=on_waiting)
        return joined.lease_s

    def _renew(self, parts: Parts) -> None:
        """Keep the lease alive and say how it goes; join again if the swarm has let us go."""
        news = parts.daemon.news  # a neighbour that died is reported without delay
        while not self._ended.is_set():
            news.wait(min(1.0, self._lease_s / 3))
            news.clear()
            if self._ended.is_set():
                return
            lease_s = self.client.renew(self._renewal(parts))
            if lease_s is not None:
                self._lease_s = lease_s
            elif not self._ended.is_set():
                self._rejoin(parts)

    def _renewal(self, parts: Parts) -> Renewal:
        state = parts.daemon.state()
        return Renewal(
            peer_id=state.peer_id,
            incarnation=self._incarnation,
            epoch=state.epoch,
            step=state.step,
            loss=state.loss,
            state=state.state,
            models_counted=state.models_counted,
            steps_per_s=state.steps_per_s,
            unreachable=frozenset(parts.daemon.down),
            swarm=state.swarm,
        )

    def _rejoin(self, parts: Parts) -> None:
        text = "this peer's lease has run out: joining again"
        logs.event(log, logging.WARNING, "lease_expired", text)
        self.metrics.lease_expiries.inc()
        try:
            candidate = self._join(parts.daemon.peer)
            if candidate.donors:  # else a coordinator without memory asks, and nothing else changes
                self._start_over(parts, candidate)
            self._lease_s = self._seat(parts)
        except CancelledError:
            log.info("the end came before this peer could join again")
        except NoAnswerError:
            log.warning("the coordinator is away again: joining once it is back")
        except JoinError as error:
            parts.daemon.fail(error)

    def _start_over(self, parts: Parts, candidate: Joined) -> None:
        """The swarm has gone on without us: be a newcomer, with its model where it is further."""
        step, vector = parts.daemon.steps_done, None
        try:
            found = parts.ask_donors(candidate)
        except JoinError as error:
            log.warning("going on with this peer's own model: %s", error)
        else:
            if found.step > step:
                step, vector = found.step, found.vector
        algorithm = build_algorithm(parts.trainer.config, step)
        parts.daemon.start_over(algorithm, vector).result()

    # --- the end -----------------------------------------------------------------------------

    def _finish(self, parts: Parts) -> None:
        """The last step is done: tell what was learnt, then serve those who still need us (R9)."""
        daemon, trainer = parts.daemon, parts.trainer
        metrics = daemon.evaluate()
        parts.outbox.settle(SETTLE_S)
        self.announce(
            "peer_finished",
            peer=daemon.peer,
            steps=daemon.steps_done,
            metrics=metrics,
            messages_sent=value(self.metrics.sent),
            messages_expected=value(self.metrics.expected),
            messages_missed=value(self.metrics.missed),
            messages_timed_out=value(self.metrics.timed_out),
            waited_s=round(self.metrics.waited_s, 6),
            local_steps=value(self.metrics.local_steps),
            bytes_sent=value(self.metrics.bytes_sent),
            model=parts.export(),
            shard=trainer.site.shard,
            shard_digest=trainer.data.digest(),
            notes=list(getattr(trainer.data, "notes", ())),
        )
        parts.checkpoints.save(daemon.steps_done)
        self._linger(parts)
        self._ended.set()
        self._say_goodbye(parts, finished=True)
        if self.options.stay:
            self._stay()

    def _stay(self) -> None:
        """Serve the final model and metrics until a signal comes: for deployments that start a
        process again when it ends."""
        log.info("all steps done; serving the model until told to end")
        self._lingers = True
        with suppress(_Interrupted):
            threading.Event().wait()
        self._lingers = False

    def _linger(self, parts: Parts) -> None:
        """Until neighbours have our last messages, and we their last metrics; a signal ends it."""
        transport = parts.trainer.config.transport
        self._lingers = True
        with suppress(_Interrupted):
            parts.daemon.swarm.await_others(min(transport.linger_s, transport.deadline_s))
            parts.outbox.close(transport.linger_s)
        self._lingers = False

    def _leave_early(self, parts: Parts) -> None:
        """Asked to stop: the local steps under way come to their end and are kept."""
        daemon = parts.daemon
        self._end_training(parts)
        self._say_goodbye(parts, finished=False)
        self.announce("state", peer=daemon.peer, state="left")
        text = f"left after {daemon.steps_done} steps"
        logs.event(log, logging.INFO, "left", text, steps=daemon.steps_done)

    def _say_goodbye(self, parts: Parts, *, finished: bool) -> None:
        """Leave, and before that tell how far this peer has come."""
        self.client.renew(self._renewal(parts))
        self.client.leave(parts.daemon.peer, self._incarnation, finished=finished)

    def _end_training(self, parts: Parts) -> None:
        """Before its time: what has been learnt is kept."""
        self._ended.set()  # or the lease's thread would join again when it is told that we left
        parts.daemon.close()
        parts.checkpoints.save(parts.daemon.steps_done)

    # --- signals -----------------------------------------------------------------------------

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._signal = number
        if self._daemon is None or self._lingers:
            raise _Interrupted
        self._daemon.stop()

    def _exit_code(self) -> int:
        """SIGTERM is how a deployment ends a peer: nothing has gone wrong."""
        interrupted = self._signal == signal.SIGINT
        return ExitCode.INTERRUPTED if interrupted else ExitCode.DONE


def _log_as(daemon: Daemon, run_id: str) -> None:
    def epoch() -> str | None:
        view = daemon.view
        return f"{view.epoch.term}.{view.epoch.number}" if view else None

    logs.set_context(
        run=lambda: run_id,
        peer=lambda: daemon.peer,
        epoch=epoch,
        step=lambda: daemon.algorithm.step,
    )


class _Interrupted(BaseException):
    """A signal came when there was nothing to save, or nothing left to save."""
