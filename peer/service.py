"""A peer's life from start to end: join, serve, train, linger, leave.

What belongs here: what a peer does after what, what it says to its user, and how it is ended. What
it consists of is in `peer.parts`; what happens while it trains, in `peer.daemon`; how it stays a
member, in `peer.lease`; what becomes of its model, in `peer.last_model`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from coordinator.member_metrics import Evaluation
from peer.algorithms.core import PeerId
from peer.announce import Announcer
from peer.audit import Audit
from peer.daemon import Daemon, Stop
from peer.hand_over import HandOver
from peer.hand_over import read as read_hand_over
from peer.last_model import LastModel, measured_elsewhere
from peer.lease import Lease, candidacy
from peer.metrics import PeerMetrics, value
from peer.parts import BY_TASK, Learning, Parts, PeerOptions, audit_of, law_of
from peer.process import keep_freed_memory
from peer.training.checkpoint import newest_step
from peer.training.files import require_writable
from peer.transport.coordinator_client import (
    CoordinatorClient,
    Joined,
    NoAnswerError,
    RunOverError,
)
from peer.way_back import require_way_back
from relayswarm import logs
from relayswarm.errors import AuditError, ConfigError, ExitCode, JoinError, RelayswarmError

log = logging.getLogger("relayswarm.peer")

T = TypeVar("T")

DONE_PATIENCE_S = 5.0
"""For a coordinator to answer a peer that has finished its run."""
SETTLE_S = 1.0  # for answers to the last messages, so that the report counts them


def run(options: PeerOptions) -> int:
    """Be a peer until the run is over or somebody ends it; returns the exit code.

    Raises RelayswarmError for what the user can mend. SIGTERM and SIGINT end it gracefully: the
    local step under way comes to its end, a checkpoint is written, the swarm is told.
    """
    keep_freed_memory()
    peer = Peer(options)
    peer.take_signals()
    return peer.live()


class Peer:
    """One peer and all its parts: a daemon, or part of a program with a loop of its own."""

    def __init__(self, options: PeerOptions, learning: Learning = BY_TASK) -> None:
        self.options = options
        self.daemon: Daemon | None = None  # once it has joined
        self._learning = learning
        self.announce = Announcer(speaks=options.json_events)
        self.law = law_of(options)
        self.metrics = PeerMetrics(self.law.may_tell)
        self._audit: Audit | None = None
        self._audit_error: AuditError | None = None
        self.client = CoordinatorClient(options.coordinator, options.security)
        self._incarnation = time.time_ns()
        self._signal: int | None = None
        self._lingers = False

    def live(self) -> int:
        """From joining to leaving; returns the exit code."""
        if self.options.dial_only and self.options.advertise:
            raise ConfigError(
                "--advertise",
                self.options.advertise,
                "given, but with --reachability dial-only nobody connects to this peer",
                "leave one of them away",
            )
        if self.options.state_dir is not None:
            require_writable(self.options.state_dir, "--state-dir")
        try:
            self._audit = audit_of(self.options, self.law, self.metrics, self._unrecorded)
            candidate = self._begin()
            if isinstance(candidate, HandOver):
                return self._serve(candidate)
            with Parts(
                self.options,
                self._learning,
                candidate,
                self.metrics,
                self.announce,
                self.law,
                self._audit,
            ) as parts:
                self.daemon = parts.daemon
                _log_as(parts.daemon, candidate.run_id)
                code = self._be_member(parts)
            if self._audit_error is not None:  # after the last step
                raise self._audit_error
            return code
        except _Interrupted:
            return self._exit_code()
        finally:
            self.client.close()
            if self._audit is not None:
                self._audit.close()
                log.info("the last record of %s is %s", self._audit.path, self._audit.head)

    # --- being a member ----------------------------------------------------------------------

    def _be_member(self, parts: Parts) -> int:
        lease = Lease(self.client, self._incarnation, parts)
        if parts.trainer.config.topology.self_heal:
            lease.heal()
        if not self.options.dial_only:
            require_way_back(
                parts.server,
                parts.daemon.peer,
                parts.address,
                self.options.coordinator,
                self.options.security,
            )
        lease.take()
        try:
            parts.daemon.run()
        except Stop:
            self._leave_early(parts, lease)
            return self._exit_code()
        except JoinError:
            self._end_training(parts, lease)
            raise
        except AuditError:
            self._end_training(parts, lease)
            lease.leave(finished=False)
            raise
        except RelayswarmError:  # the model may have done half a step: it is not kept
            lease.end()
            lease.leave(finished=False)
            raise
        finally:
            if parts.daemon.healing:
                parts.daemon.healing.stop()
            parts.daemon.close()
        last = LastModel(parts, lease.ever)
        self._finish(parts, lease, last)
        last.judge()
        return ExitCode.DONE

    def _begin(self) -> Joined | HandOver:
        """Learn about the run; or what is left of it, if it has been done here."""
        directory = self.options.state_dir
        done = read_hand_over(directory) if directory else None
        if done is None:
            return self._ask(self.options.peer_id, self.options.patience_s)
        patience_s = min(DONE_PATIENCE_S, self.options.patience_s)
        try:
            return self._ask(self.options.peer_id or done.peer, patience_s)
        except (NoAnswerError, RunOverError) as error:
            text = f"run {done.run_id} is done here, after step {done.step}: {error}"
            logs.event(log, logging.INFO, "handed_over", text, sha256=done.model_sha256)
            return done

    def _ask(self, peer_id: PeerId, patience_s: float) -> Joined:
        step = newest_step(self.options.state_dir if self.options.resume else None)
        info = candidacy(self.options, self._incarnation, peer_id, step)
        return self.client.join(info, patience_s)

    def _serve(self, done: HandOver) -> int:
        """Be a finished peer again."""
        if not self.options.stay:
            log.info("nothing to be done; --stay would serve the model")
            return ExitCode.DONE
        run = Joined(1, done.run_id, done.peer, done.run_config, done.shard, 0.0, ())
        with Parts(
            self.options,
            self._learning,
            run,
            self.metrics,
            self.announce,
            self.law,
            self._audit,
            done,
        ) as parts:
            self.daemon = parts.daemon
            parts.daemon.rest()
            self.announce("state", peer=done.peer, state="finished")
            self._stay()
        return self._exit_code()

    # --- the end -----------------------------------------------------------------------------

    def _finish(self, parts: Parts, lease: Lease, last: LastModel) -> None:
        """The last step is done: tell what was learnt, then serve those who still need us (R9)."""
        daemon, trainer = parts.daemon, parts.trainer
        metrics = daemon.evaluate()
        daemon.news.set()  # the other sites wait to hear of it
        parts.outbox.settle(SETTLE_S)
        self.announce(
            "peer_finished",
            peer=daemon.peer,
            steps=daemon.steps_done,
            metrics=metrics,
            messages_sent=value(self.metrics.sent),
            messages_retried=value(self.metrics.retried),
            messages_expected=value(self.metrics.expected),
            messages_missed=value(self.metrics.missed),
            messages_timed_out=value(self.metrics.timed_out),
            waited_s=round(self.metrics.waited_s, 6),
            local_steps=value(self.metrics.local_steps),
            bytes_sent=value(self.metrics.bytes_sent),
            privacy=trainer.privacy_spent(),
            model=last.write(metrics, lambda: self._signal is not None),
            shard=trainer.site.shard,
            weight=parts.weight,
            shard_digest=trainer.data_digest(),
            notes=list(trainer.notes),
        )
        parts.checkpoints.save(daemon.steps_done, last=True)
        last.hand_over(metrics)
        daemon.release()
        sites = self._linger(parts)
        last.hand_over(metrics, sites)
        lease.end()
        lease.leave(finished=True)
        if self.options.stay:
            self._stay()

    def _stay(self) -> None:
        """Serve the final model and metrics until a signal comes: for deployments that start a
        process again when it ends."""
        log.info("all steps done; serving the model until told to end")
        self._until_told(threading.Event().wait)

    def _linger(self, parts: Parts) -> Mapping[PeerId, Evaluation]:
        """Until neighbours have our last messages, and we their last metrics; a signal ends it.
        Returns what each other site measured of the common model, if there is one."""
        transport = parts.trainer.config.transport
        patience_s = min(transport.linger_s, transport.deadline_s)
        until = time.monotonic() + patience_s

        def linger() -> Mapping[PeerId, Evaluation]:
            parts.daemon.swarm.await_others(patience_s)
            parts.outbox.close(transport.linger_s)
            return measured_elsewhere(self.client, parts.daemon, until)

        return self._until_told(linger) or {}

    def _leave_early(self, parts: Parts, lease: Lease) -> None:
        """Asked to stop: the local steps under way come to their end and are kept."""
        daemon = parts.daemon
        self._end_training(parts, lease)
        lease.leave(finished=False)
        self.announce("state", peer=daemon.peer, state="left")
        text = f"left after {daemon.steps_done} steps"
        logs.event(log, logging.INFO, "left", text, steps=daemon.steps_done)

    def _end_training(self, parts: Parts, lease: Lease) -> None:
        """Before its time: what has been learnt is kept."""
        lease.end()  # or it would join again when it is told that we left
        parts.daemon.close()
        parts.checkpoints.save(parts.daemon.steps_done, last=True)

    def _unrecorded(self, error: AuditError) -> None:
        """From whatever thread has found it out. Nothing is sent any more: what is under way may
        come to no end."""
        self._audit_error = error
        if self.daemon is not None:
            self.daemon.fail(error)
        logs.event(log, logging.ERROR, "audit_failed", str(error))

    # --- being ended -------------------------------------------------------------------------

    def stop(self) -> None:
        """End it before its time, from another thread; it does not wait for that."""
        if self.daemon is None:
            self.client.close()  # whoever waits for a coordinator
        if self.daemon is not None:  # perhaps since then, and it has joined
            self.daemon.stop()

    def _until_told(self, action: Callable[[], T]) -> T | None:
        """Do this, until a signal comes; one that has come since the last step is as good."""
        try:
            try:
                self._lingers = True  # before looking: a signal from now on raises
                if self._signal is None:
                    return action()
            finally:
                self._lingers = False
        except _Interrupted:
            pass
        return None

    def take_signals(self) -> None:
        """Have SIGTERM and SIGINT end it; to be called in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._signal = number
        if self.daemon is None or self._lingers:
            self._lingers = False  # nobody waits for another one
            raise _Interrupted
        self.daemon.stop()

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
