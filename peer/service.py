"""A peer's life from start to end: join, serve, train, linger, leave.

What belongs here: what a peer says to its coordinator and to its user, and when. What it consists
of is in `peer.parts`; what happens while it trains, in `peer.daemon`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from types import MappingProxyType

from coordinator.member_metrics import Evaluation, Sample
from peer import metric_snapshot
from peer.algorithms.core import Epoch, PeerId, View, peer_order
from peer.announce import Announcer
from peer.audit import Audit
from peer.config import is_pairwise
from peer.daemon import Daemon, Stop
from peer.hand_over import MODEL, HandOver, digest_of
from peer.hand_over import read as read_hand_over
from peer.hand_over import write as write_hand_over
from peer.healing import Timers
from peer.hellos import Commit, Seat
from peer.manifest import versions
from peer.metrics import PeerMetrics, value
from peer.model_files import config_sha256
from peer.outcome import Metrics
from peer.parts import BY_TASK, Learning, Parts, PeerOptions, audit_of, law_of
from peer.process import keep_freed_memory
from peer.self_healing import SelfHealing, Surroundings
from peer.swarm_metrics import as_event
from peer.training.checkpoint import newest_step
from peer.training.files import require_writable
from peer.transport.bpdus import Greeter
from peer.transport.coordinator_client import (
    CoordinatorClient,
    Joined,
    JoinInfo,
    NoAnswerError,
    Renewal,
    RunOverError,
)
from peer.way_back import require_way_back
from relayswarm import logs
from relayswarm.errors import (
    AuditError,
    ConfigError,
    ExitCode,
    JoinError,
    OutOfMemoryError,
    QuorumError,
)
from relayswarm.logs import finite

log = logging.getLogger("relayswarm.peer")

ROOM_S = 60.0  # so long may the last model wait for room on the disk, or for a file to open
RETRY_S = 0.5
DONE_PATIENCE_S = 5.0
"""For a coordinator to answer a peer that has finished its run."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 0.8  # between two questions what the other sites measured
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
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._epoch = Epoch()  # of the last view, whoever made it
        self._ever: set[PeerId] = set()  # the members of all views
        self._away_since: float | None = None  # the coordinator
        self._snapshot_at = 0.0  # when it is told of our metrics next

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
        if parts.trainer.config.topology.self_heal:
            self._heal(parts)
        if not self.options.dial_only:
            require_way_back(
                parts.server,
                parts.daemon.peer,
                parts.address,
                self.options.coordinator,
                self.options.security,
            )
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
        except AuditError:
            self._end_training(parts)
            self._say_goodbye(parts, finished=False)
            raise
        except OutOfMemoryError:  # the model may have done half a step: it is not kept
            self._ended.set()
            self._say_goodbye(parts, finished=False)
            raise
        finally:
            if parts.daemon.healing:
                parts.daemon.healing.stop()
            parts.daemon.close()
        self._finish(parts)
        self._judge_the_end(parts)
        return ExitCode.DONE

    def _begin(self) -> Joined | HandOver:
        """Learn about the run; or what is left of it, if it has been done here."""
        directory = self.options.state_dir
        done = read_hand_over(directory) if directory else None
        if done is None:
            return self._join(self.options.peer_id)
        try:
            return self._join(
                self.options.peer_id or done.peer, min(DONE_PATIENCE_S, self._patience_s)
            )
        except (NoAnswerError, RunOverError) as error:
            text = f"run {done.run_id} is done here, after step {done.step}: {error}"
            logs.event(log, logging.INFO, "handed_over", text, sha256=done.model_sha256)
            return done

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

    def _join(self, peer_id: PeerId, patience_s: float | None = None) -> Joined:
        """Learn the run config, id and shard, and who has a model to give."""
        daemon, own = self.daemon, self.options.state_dir if self.options.resume else None
        info = JoinInfo(
            self._incarnation,
            peer_id=peer_id,
            dial_only=self.options.dial_only,
            step=daemon.steps_done if daemon else newest_step(own),
            weight=0.0 if self.options.forwards else 1.0,  # which decides about a shard
        )
        return self.client.join(info, self._patience_s if patience_s is None else patience_s)

    @property
    def _patience_s(self) -> float:
        return self.options.patience_s

    def _seat(self, parts: Parts) -> float:
        """Become a member, or become one again; returns the length of the lease, seconds."""
        daemon = parts.daemon
        joined = self.client.join(
            JoinInfo(
                self._incarnation,
                peer_id=daemon.peer,
                address=parts.address,
                dial_only=self.options.dial_only,
                metrics_address=parts.metrics_address,
                fingerprint=parts.trainer.fingerprint,
                step=daemon.steps_done,
                known_epoch=self._epoch if self._epoch > Epoch() else None,
                resume_points=frozenset() if self._epoch > Epoch() else parts.resume_points,
                tree=daemon.healing.commit if daemon.healing else None,
                weight=parts.weight,
            ),
            self.options.patience_s,
        )

        def on_view(view: View, addresses: dict[PeerId, str]) -> None:
            if self._take_view(parts, view, addresses):
                daemon.viewed(view)
                if daemon.healing:
                    daemon.healing.viewed(view, addresses)

        def on_waiting(present: int, needed: int) -> None:
            self.announce("waiting", peer=daemon.peer, present=present, needed=needed)

        def on_no_tree(text: str) -> None:
            daemon.fail(JoinError(text))

        self.client.watch(
            joined.peer_id,
            self._incarnation,
            on_view=on_view,
            on_waiting=on_waiting,
            on_no_tree=on_no_tree,
            on_stop=daemon.stop_before,
            on_progress=lambda progress: daemon.pace.told(progress, daemon.algorithm.step),
        )
        return joined.lease_s

    def _take_view(self, parts: Parts, view: View, addresses: dict[PeerId, str]) -> bool:
        """Whether the view is newer than all before it, of coordinators and of roots."""
        with self._guard:
            if view.epoch.age <= self._epoch.age:
                return False
            self._epoch = view.epoch
            self._ever.update(view.members)
            parts.viewed(view, addresses)
            return True

    def _heal(self, parts: Parts) -> None:
        """Repair the tree together with the neighbours while there is no coordinator."""
        config, daemon = parts.trainer.config, parts.daemon
        timers = Timers(config.topology.hello_s, config.topology.max_age_s)
        daemon.healing = SelfHealing(
            Seat(daemon.peer, self._incarnation, parts.address, parts.weight),
            timers,
            config.coordinator.lease_s,
            Greeter(config.run_id, self.options.security, timers.max_age_s),
            Surroundings(
                step=lambda: daemon.algorithm.step,
                has_lost=lambda: bool(daemon.down),
                ask_coordinator=daemon.news.set,
                adopt=lambda commit: self._adopt(parts, commit),
                failed=daemon.fail,
            ),
        )
        daemon.healing.start()

    def _adopt(self, parts: Parts, commit: Commit) -> None:
        """Take up a tree that its root has committed; far behind the furthest of its members, go on
        from their step, with the model as it is."""
        from peer.views import committed_view  # needs a graph library, which takes time to load

        config, daemon = parts.trainer.config, parts.daemon
        view = committed_view(config, commit, daemon.peer)
        if not self._take_view(parts, view, {s.peer: s.address for s in commit.members}):
            return
        step = min(commit.step, config.steps)
        text = f"epoch {view.epoch.term}.{view.epoch.number} from step {view.effective_step}: "
        text += f"{commit.n} peers, root {commit.root}, committed without a coordinator"
        fields = {"root": commit.root, "effective_step": view.effective_step}
        logs.event(log, logging.INFO, "tree_committed", text, members=commit.n, **fields)
        self.announce(
            "tree_committed",
            peer=daemon.peer,
            epoch={"term": view.epoch.term, "number": view.epoch.number},
            members=[seat.peer for seat in commit.members],
            edges=[list(edge) for edge in commit.tree],
            step=commit.step,
            **fields,
        )
        if daemon.algorithm.step + commit.n >= step or is_pairwise(config.algorithm.name):
            daemon.viewed(view)  # pairs have no step in common
            return
        begun = daemon.start_over(step, None)
        begun.add_done_callback(lambda _: daemon.viewed(view))

    def _renew(self, parts: Parts) -> None:
        """Keep the lease alive and say how it goes; join again if the swarm has let us go."""
        news = parts.daemon.news  # a neighbour that died is reported without delay
        while not self._ended.is_set():
            news.wait(min(1.0, self._lease_s / 3))
            news.clear()
            if self._ended.is_set():
                return
            renewal = self._renewal(parts)
            lease_s = self.client.renew(renewal, partial(parts.daemon.pace.told, own=renewal.step))
            if parts.daemon.healing:
                parts.daemon.healing.away(self._away_s())
            if lease_s is not None:
                self._lease_s = lease_s
            elif not self._ended.is_set():
                self._rejoin(parts)

    def _away_s(self) -> float | None:
        """For how long the coordinator has been away, seconds; None if it is not."""
        if not self.client.is_away:
            self._away_since = None
            return None
        self._away_since = self._away_since or time.monotonic()
        return time.monotonic() - self._away_since

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
            tree=parts.daemon.healing.commit if parts.daemon.healing else None,
            metrics=self._snapshot(),
            evaluation=parts.daemon.swarm.own,
        )

    def _snapshot(self) -> tuple[Sample, ...] | None:
        """What the coordinator is told of our metrics, if it is time to."""
        now = time.monotonic()
        if now < self._snapshot_at:
            return None
        self._snapshot_at = now + metric_snapshot.EVERY_S
        return metric_snapshot.snapshot(self.metrics.registry)

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
        step, vector = 0, None
        try:
            found = parts.ask_donors(candidate)
        except JoinError as error:
            log.warning("going on with this peer's own model: %s", error)
        else:
            step, vector = found.step, found.vector
        parts.daemon.start_over(step, vector).result()

    # --- the end -----------------------------------------------------------------------------

    def _finish(self, parts: Parts) -> None:
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
            messages_expected=value(self.metrics.expected),
            messages_missed=value(self.metrics.missed),
            messages_timed_out=value(self.metrics.timed_out),
            waited_s=round(self.metrics.waited_s, 6),
            local_steps=value(self.metrics.local_steps),
            bytes_sent=value(self.metrics.bytes_sent),
            privacy=trainer.privacy_spent(),
            model=self._exported(parts, metrics),
            shard=trainer.site.shard,
            weight=parts.weight,
            shard_digest=trainer.data_digest(),
            notes=list(trainer.notes),
        )
        parts.checkpoints.save(daemon.steps_done, last=True)
        self._hand_over(parts, metrics)
        daemon.release()
        sites = self._linger(parts)
        self._hand_over(parts, metrics, sites)
        self._ended.set()
        self._say_goodbye(parts, finished=True)
        if self.options.stay:
            self._stay()

    def _exported(self, parts: Parts, metrics: Metrics) -> str | None:
        """Write the last model; returns where, if anywhere. While there is no room for it, this
        peer waits, and serves. Raises ConfigError after `ROOM_S`, or when a signal comes."""
        began, told = time.monotonic(), False
        while True:
            try:
                return parts.export(metrics)
            except ConfigError as error:
                if self._signal is not None or time.monotonic() - began > ROOM_S:
                    raise
                if not told:
                    text = f"{error}; trying again for {ROOM_S:.0f} s"
                    logs.event(log, logging.ERROR, "model_not_written", text)
                told = True
            self._ended.wait(RETRY_S)

    def _hand_over(
        self,
        parts: Parts,
        metrics: Mapping[str, float],
        others: Mapping[PeerId, Evaluation] = MappingProxyType({}),
    ) -> None:
        """Say beside the model what it is, and what the `others` measured of it."""
        directory, daemon = self.options.state_dir, parts.daemon
        if directory is None or not parts.trainer.config.stop.common_model:
            return
        members = list(daemon.common.members) if daemon.common else [daemon.peer]
        weights = daemon.common.weights if daemon.common else {}
        text = parts.candidate.run_config
        known, own = daemon.swarm.known, daemon.swarm.own
        sites = {**others, daemon.peer: own} if own else others
        what = HandOver(
            run_id=parts.run_id,
            config_sha256=config_sha256(parts.run_config),
            peer=daemon.peer,
            shard=parts.trainer.site.shard,
            step=daemon.steps_done,
            model_sha256=digest_of(directory / MODEL),
            is_common=daemon.common is not None,
            participants=members,
            weights={peer: float(weights.get(peer, 1)) for peer in members},
            missing=self._missing(parts),
            metrics={name: finite(value) for name, value in metrics.items()},
            swarm_metrics=as_event(known) if known else None,
            best_swarm_metrics=as_event(daemon.swarm.best) if daemon.swarm.best else None,
            versions=versions(),
            run_config=text,
            sites={peer: sites[peer].as_json() for peer in sorted(sites, key=peer_order)},
        )
        write_hand_over(directory, what)

    def _missing(self, parts: Parts) -> list[PeerId]:
        common = parts.daemon.common
        present = common.members if common else {parts.daemon.peer}
        return sorted(self._ever.difference(present), key=peer_order)

    def _judge_the_end(self, parts: Parts) -> None:
        """Say whose models are in the common one. Raises QuorumError if they are too few."""
        stop = parts.trainer.config.stop
        if not stop.common_model:
            return
        common, missing = parts.daemon.common, self._missing(parts)
        without = f"; without {', '.join(missing)}" if missing else ""
        if common is None:
            unsure = parts.daemon.unsure
            what = "the other models did not come, and the model here is this peer's own"
            if unsure:
                what = f"no word came whether all others have the mean of {unsure.n} that is here"
            raise QuorumError(
                f"stop.common_model = True: {what}{without}; fetch that of another peer with "
                "`relayswarm pull`"
            )
        weights = common.weights.values()
        n = sum(weight > 0 for weight in weights) if weights else common.n
        text = f"the model is the mean of {n} peers'{without}"
        level = logging.WARNING if missing else logging.INFO
        logs.event(log, level, "handed_over", text, peers=n, missing=missing)
        if n < stop.min_peers:
            raise QuorumError(
                f"stop.min_peers = {stop.min_peers}: only {n} peers' models are in the "
                f"common one{without}; it is kept, but start another run for one of more"
            )

    def _stay(self) -> None:
        """Serve the final model and metrics until a signal comes: for deployments that start a
        process again when it ends."""
        log.info("all steps done; serving the model until told to end")
        self._lingers = True
        with suppress(_Interrupted):
            threading.Event().wait()
        self._lingers = False

    def _linger(self, parts: Parts) -> Mapping[PeerId, Evaluation]:
        """Until neighbours have our last messages, and we their last metrics; a signal ends it.
        Returns what each other site measured of the common model, if there is one."""
        transport = parts.trainer.config.transport
        patience_s = min(transport.linger_s, transport.deadline_s)
        until = time.monotonic() + patience_s
        sites: Mapping[PeerId, Evaluation] = {}
        self._lingers = True
        with suppress(_Interrupted):
            parts.daemon.swarm.await_others(patience_s)
            parts.outbox.close(transport.linger_s)
            sites = self._sites(parts, until)
        self._lingers = False
        return sites

    def _sites(self, parts: Parts, until: float) -> Mapping[PeerId, Evaluation]:
        """What each other participant measured of the common model, as the coordinator has heard.
        It is asked once at least, and again `until` it has heard of all that it knows, or is
        away."""
        common, own = parts.daemon.common, parts.daemon.swarm.own
        others = set(common.members) - {parts.daemon.peer} if common else set()
        found: dict[PeerId, Evaluation] = {}
        pause_s = FIRST_PAUSE_S
        while others and own:
            told = self.client.evaluations()
            if told is None:
                break
            known = {peer: told[peer] for peer in others if peer in told}
            found |= {p: one for p, one in known.items() if one and one.step == own.step}
            if found.keys() >= known.keys() or time.monotonic() > until:
                break
            self._ended.wait(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
        return found

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
        else:
            self.daemon.stop()

    def take_signals(self) -> None:
        """Have SIGTERM and SIGINT end it; to be called in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._signal = number
        if self.daemon is None or self._lingers:
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
