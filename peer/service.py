"""A peer's life from start to end: join, serve, train, linger, leave.

What belongs here: putting the parts of a daemon together and taking them down in order. What
happens between is in `peer.daemon`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from peer.algorithms.core import NewView, PeerId, View
from peer.announce import Announcer
from peer.checkpoints import Checkpoints
from peer.codec import Format
from peer.config import build_algorithm, find_algorithm
from peer.daemon import Daemon, Stop
from peer.faults import FaultPlan
from peer.metrics import PeerMetrics, value
from peer.tasks.registry import load_task
from peer.training.checkpoint import export_model
from peer.training.files import require_writable
from peer.training.trainer import Trainer, make_site
from peer.transport.channel import split_address
from peer.transport.client import Outbox
from peer.transport.contract import Contract
from peer.transport.coordinator_client import CoordinatorClient, Joined, JoinInfo, Renewal
from peer.transport.read_model import ReadModelError, read_model
from peer.transport.remote_model import RemoteModel
from peer.transport.server import PeerServer
from relayswarm import config as run_config
from relayswarm.config import RunConfig
from relayswarm.errors import ExitCode, JoinError

log = logging.getLogger("relayswarm.peer")

GRACE_S = 5.0  # for messages under way and calls in progress when a peer ends
SETTLE_S = 1.0  # for answers to the last messages, so that the report counts them
DONOR_PATIENCE_S = 5.0  # without a byte; then another donor is asked


@dataclass(frozen=True)
class PeerOptions:
    """What the command line says about one peer; everything else is the run config's."""

    coordinator: str
    peer_id: str = ""
    listen: str = "127.0.0.1:0"
    advertise: str = ""
    metrics_listen: str = "127.0.0.1:0"
    device: str = "auto"
    data_dir: Path | None = None
    state_dir: Path | None = None
    patience_s: float = 60.0  # for the coordinator to answer a join
    resume: bool = False
    reflection: bool = False
    json_events: bool = False


def run(options: PeerOptions) -> int:
    """Be a peer until the run is over or somebody ends it; returns the exit code.

    Raises RelayswarmError for what the user can mend. SIGTERM and SIGINT end it gracefully: the
    local step under way comes to its end, a checkpoint is written, the swarm is told.
    """
    return Peer(options).live()


class Peer:
    """One peer daemon and all its parts."""

    def __init__(self, options: PeerOptions) -> None:
        self.options = options
        self.announce = Announcer(speaks=options.json_events)
        self.metrics = PeerMetrics()
        self.client = CoordinatorClient(options.coordinator)
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
            with _Parts(self, candidate) as parts:
                self._daemon = parts.daemon
                return self._be_member(parts)
        except _Interrupted:
            return self._exit_code()
        finally:
            self.client.close()

    # --- being a member ----------------------------------------------------------------------

    def _be_member(self, parts: _Parts) -> int:
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
        finally:
            parts.daemon.close()
        self._finish(parts)
        return ExitCode.DONE

    def _join(self, peer_id: PeerId) -> Joined:
        """Learn the run config, id and shard, and who has a model to give."""
        info = JoinInfo(self._incarnation, peer_id=peer_id)
        return self.client.join(info, self.options.patience_s)

    def _seat(self, parts: _Parts) -> float:
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
            daemon.post(NewView(view))

        def on_waiting(present: int, needed: int) -> None:
            self.announce("waiting", peer=daemon.peer, present=present, needed=needed)

        self.client.watch(joined.peer_id, self._incarnation, on_view=on_view, on_waiting=on_waiting)
        return joined.lease_s

    def _renew(self, parts: _Parts) -> None:
        """Keep the lease alive and say how it goes; join again if the swarm has let us go."""
        while not self._ended.wait(min(1.0, self._lease_s / 3)):
            lease_s = self.client.renew(self._renewal(parts))
            if lease_s is not None:
                self._lease_s = lease_s
            elif not self._ended.is_set():
                self._rejoin(parts)

    def _renewal(self, parts: _Parts) -> Renewal:
        state = parts.daemon.state()
        return Renewal(
            peer_id=state.peer_id,
            incarnation=self._incarnation,
            epoch=state.epoch,
            step=state.step,
            loss=state.loss,
            state=state.state,
            models_counted=state.models_counted,
            unreachable=frozenset(parts.daemon.down),
        )

    def _rejoin(self, parts: _Parts) -> None:
        log.warning("this peer's lease has run out: joining again")
        self.metrics.lease_expiries.inc()
        try:
            candidate = self._join(parts.daemon.peer)
            if candidate.donors:  # else a coordinator without memory asks, and nothing else changes
                self._start_over(parts, candidate)
            self._lease_s = self._seat(parts)
        except CancelledError:
            log.info("the end came before this peer could join again")
        except JoinError as error:
            parts.daemon.fail(error)

    def _start_over(self, parts: _Parts, candidate: Joined) -> None:
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

    def _finish(self, parts: _Parts) -> None:
        """The last step is done: tell what was learnt, then serve those who still need us (R9)."""
        daemon, trainer = parts.daemon, parts.trainer
        metrics = daemon.evaluate(daemon.steps_done)
        parts.outbox.settle(SETTLE_S)
        self.announce(
            "peer_finished",
            peer=daemon.peer,
            steps=daemon.steps_done,
            metrics=metrics,
            messages_sent=value(self.metrics.sent),
            messages_expected=value(self.metrics.expected),
            messages_missed=value(self.metrics.missed),
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

    def _linger(self, parts: _Parts) -> None:
        """Until neighbours have our last messages; a signal ends it."""
        self._lingers = True
        with suppress(_Interrupted):
            parts.outbox.close(parts.trainer.config.transport.linger_s)
        self._lingers = False

    def _leave_early(self, parts: _Parts) -> None:
        """Asked to stop: the local steps under way come to their end and are kept."""
        daemon = parts.daemon
        self._end_training(parts)
        self._say_goodbye(parts, finished=False)
        self.announce("state", peer=daemon.peer, state="left")
        log.info("left after %d steps", daemon.steps_done)

    def _say_goodbye(self, parts: _Parts, *, finished: bool) -> None:
        """Leave, and before that tell how far this peer has come."""
        self.client.renew(self._renewal(parts))
        self.client.leave(parts.daemon.peer, self._incarnation, finished=finished)

    def _end_training(self, parts: _Parts) -> None:
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


class _Interrupted(BaseException):
    """A signal came when there was nothing to save, or nothing left to save."""


class _Parts:
    """What a member consists of, put together in order and taken down in reverse."""

    def __init__(self, peer: Peer, candidate: Joined) -> None:
        options, metrics = peer.options, peer.metrics
        self.options = options
        config = run_config.parse(candidate.run_config)
        site = make_site(config, candidate.shard, options.data_dir)
        self.trainer = Trainer(load_task(config.task), config, site, _device(options.device))
        self.checkpoints = Checkpoints(options.state_dir, self.trainer, metrics, candidate.peer_id)
        start_step = self.checkpoints.load() if options.resume else 0
        if candidate.donors:
            start_step = self._catch_up(candidate, start_step)
        self.daemon = Daemon(
            candidate.peer_id,
            build_algorithm(config, start_step),
            self.trainer,
            self.checkpoints,
            metrics,
            peer.announce,
        )
        self._connect(config, metrics)
        peer.announce(
            "peer_started",
            peer=candidate.peer_id,
            pid=os.getpid(),
            address=self.address,
            metrics_address=self.metrics_address,
        )

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *error: object) -> None:
        self.outbox.close(0.0 if error[0] else GRACE_S)
        self.server.stop(GRACE_S)
        self._metrics_server.shutdown()

    def export(self) -> str | None:
        """Write the final model beside the checkpoints; returns its path."""
        if self.options.state_dir is None:
            return None
        path = self.options.state_dir / "model.safetensors"
        daemon = self.daemon
        export_model(
            path,
            self.trainer.flat,
            {"peer": daemon.peer, "step": str(daemon.steps_done), "run_id": self.run_id},
        )
        return str(path)

    @property
    def run_id(self) -> str:
        return self.trainer.config.run_id

    def _connect(self, config: RunConfig, metrics: PeerMetrics) -> None:
        """Servers first: a member must already be reachable when others learn of it."""
        contract = _contract(config, self.trainer)
        daemon = self.daemon
        plan = FaultPlan(config.faults, config.seed)
        self.outbox = Outbox(daemon.peer, contract, plan, daemon)
        daemon.outbox = self.outbox
        host, port = split_address(self.options.metrics_listen, "--metrics-listen")
        self.metrics_address, self._metrics_server = metrics.serve(host, port)
        self.server = PeerServer(
            daemon, contract, self.options.listen, reflection=self.options.reflection
        )
        self.server.start()  # last: until then, what goes wrong leaves nothing running
        self.address = self.options.advertise or self.server.address

    def _catch_up(self, candidate: Joined, own_step: int) -> int:
        """The run is under way: start from a member's model, unless ours is as far."""
        found = self.ask_donors(candidate)
        if found.step > own_step:
            self.trainer.flat.vector.copy_(found.vector)
            log.info("starting from step %d of %s", found.step, found.peer_id)
        return max(own_step, found.step)

    def ask_donors(self, candidate: Joined) -> RemoteModel:
        """The model of the first donor that gives one. Raises JoinError."""
        for address in candidate.donors:
            try:
                found = read_model(address, run_id=candidate.run_id, patience_s=DONOR_PATIENCE_S)
            except ReadModelError as error:
                log.warning("no model from %s: %s", address, error)
                continue
            self._require_same_model(found)
            return found
        raise JoinError("no member of the swarm could be asked for the model; try again later")

    def _require_same_model(self, found: RemoteModel) -> None:
        own = self.trainer.fingerprint
        if found.fingerprint != own:
            raise JoinError(
                f"the model of {found.peer_id} has fingerprint {found.fingerprint}, this peer's "
                f"{own}: start it with the same task and version"
            )


def _contract(config: RunConfig, trainer: Trainer) -> Contract:
    flat, name = trainer.flat, config.transport.wire_format
    return Contract(
        run_id=config.run_id,
        fingerprint=flat.fingerprint,
        elements=flat.vector.numel(),
        dtype=flat.vector.dtype,
        trees=2 if config.topology.tree == "double-binary-trees" else 1,
        max_sections=find_algorithm(config.algorithm.name)[0].sections,
        wire_format=Format(name) if name else None,
    )


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
