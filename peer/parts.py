"""What a peer consists of: put together in order, taken down in reverse.

What belongs here: from options and run config to objects that work together. What a peer does with
them is in `peer.service`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from peer.algorithms import ALGORITHMS
from peer.algorithms.core import PeerId, View
from peer.announce import Announcer
from peer.audit import Audit
from peer.checkpoints import Checkpoints
from peer.config import OFFERS as OFFERED_ALGORITHMS
from peer.config import build_algorithm, find_algorithm
from peer.daemon import Daemon
from peer.faults import FaultPlan
from peer.hand_over import MODEL, HandOver
from peer.law import NO_LAW, Law, file_digest
from peer.local_training import MakeTraining
from peer.metrics import PeerMetrics
from peer.tasks.registry import BUILT_IN, load_task
from peer.tasks.registry import OFFERS as OFFERED_TASKS
from peer.training.forwarder import Forwarder
from peer.training.learner import Learner
from peer.training.trainer import Trainer, make_site
from peer.training_thread import TrainingThread
from peer.transport.client import Exchanges, Outbox
from peer.transport.collecting import Collecting
from peer.transport.collectors import Collectors
from peer.transport.contract import Contract
from peer.transport.coordinator_client import Joined
from peer.transport.read_model import ReadModelError, read_model
from peer.transport.remote_model import Expected, RemoteModel
from peer.transport.server import PeerServer
from peer.transport.visits import Visits
from peer.weighting import check_weighting, weight_of
from peer.wire_format import lattice_setting, plain_format, quantizer_setting
from relayswarm import config as run_config
from relayswarm import logs
from relayswarm import site as site_config
from relayswarm.config import OWN_LOOP, RunConfig
from relayswarm.errors import AuditError, ConfigError, JoinError, LawError
from relayswarm.net.address import split_address
from relayswarm.net.reachability import Reachability
from relayswarm.net.security import PLAIN, Security

log = logging.getLogger("relayswarm.peer")

TASK_NAME_LENGTH = 200  # of what a coordinator says, in the record of what leaves
GRACE_S = 5.0  # for messages under way and calls in progress when a peer ends
DONOR_PATIENCE_S = 5.0  # without a byte; then another donor is asked


@dataclass(frozen=True)
class PeerOptions:
    """What the command line says about one peer; everything else is the run config's."""

    coordinator: str
    peer_id: str = ""
    listen: str = "127.0.0.1:0"
    advertise: str = ""
    reachability: Reachability = Reachability.BOTH
    metrics_listen: str = "127.0.0.1:0"
    device: str = "auto"
    data_dir: Path | None = None
    state_dir: Path | None = None
    patience_s: float = 60.0  # for the coordinator to answer a join
    resume: bool = False
    stay: bool = False
    reflection: bool = False
    json_events: bool = False
    security: Security = PLAIN
    allow_tasks: tuple[str, ...] = ()  # of packages; built-in ones always are
    task_file: Path | None = None  # of a run whose task is in a file
    allow_algorithms: tuple[str, ...] = ()
    weight: float | None = None  # that it declares, where the run asks for it
    forwards: bool = False  # it has no data
    site: Path | None = None

    @property
    def dial_only(self) -> bool:
        """Whether nobody can connect to this peer."""
        return self.reachability is Reachability.DIAL_ONLY


@dataclass(frozen=True)
class Learning:
    """How a peer learns: what trains its model, of a run and a shard, and who takes its steps."""

    make_learner: Callable[[RunConfig, int, PeerOptions], Learner]
    make_training: MakeTraining


class Parts:
    """What a member consists of. Leaving it as a context takes it down.

    Raises RelayswarmError for what the user can mend.
    """

    def __init__(
        self,
        options: PeerOptions,
        learning: Learning,
        candidate: Joined,
        metrics: PeerMetrics,
        announce: Announcer,
        law: Law = NO_LAW,
        audit: Audit | None = None,
        handed_over: HandOver | None = None,
    ) -> None:
        """`handed_over`: the run is done here, and its model is only to be served."""
        self.options = options
        self.candidate = candidate
        config = _lawful(candidate, options, law, audit)
        OFFERED_ALGORITHMS.require_allowed(
            config.algorithm.name, ALGORITHMS, options.allow_algorithms, "--allow-algorithm"
        )
        check_weighting(config)
        known = replace(options, peer_id=candidate.peer_id)
        self.trainer = learning.make_learner(config, candidate.shard, known)
        self.weight = weight_of(
            config,
            candidate.peer_id,
            self.trainer.samples,
            forwards=options.forwards,
            declared=options.weight,
        )
        if self.trainer.movement is not None:
            spent, delta = self.trainer.movement.spent, config.privacy.delta
            metrics.epsilon.set_function(lambda: spent.epsilon(delta))
            if options.state_dir is not None:
                spent.keep(options.state_dir / "privacy.json")
        self.checkpoints = Checkpoints(options.state_dir, self.trainer, metrics, candidate.peer_id)
        start_step = self.checkpoints.load() if options.resume else 0
        self.resume_points = self.checkpoints.resume_points() if options.resume else frozenset()
        if candidate.donors:
            start_step = self._catch_up(candidate, start_step)
        if handed_over:
            assert options.state_dir is not None
            self.trainer.flat.load(load_file(options.state_dir / MODEL))
            start_step = handed_over.step
        self.daemon = Daemon(
            candidate.peer_id,
            build_algorithm(config, start_step),
            self.trainer,
            self.checkpoints,
            metrics,
            announce,
            learning.make_training,
            self.weight,
            law,
            audit,
        )
        metrics.belong(config.run_id, candidate.peer_id, self.trainer.device)
        self._connect(config, metrics)
        announce(
            "peer_started",
            peer=candidate.peer_id,
            pid=os.getpid(),
            address=self.address,
            metrics_address=self.metrics_address,
        )

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *error: object) -> None:
        self.outbox.close(0.0 if error[0] else GRACE_S)
        if self._collecting is not None:
            self._collecting.stop()
        self.server.stop(GRACE_S)
        self._metrics_server.shutdown()
        self._metrics_server.server_close()

    def _connect(self, config: RunConfig, metrics: PeerMetrics) -> None:
        """Servers first: a member must already be reachable when others learn of it."""
        contract = contract_of(config, self.trainer)
        daemon = self.daemon
        plan = FaultPlan(config.faults, config.seed)
        security = self.options.security
        visits, self.collectors = Visits(), Collectors()
        pairs = Exchanges(daemon, visits)
        self.outbox = Outbox(
            daemon.peer,
            contract,
            plan,
            daemon,
            security,
            pairs,
            self.collectors,
            ledger=daemon.audit,
        )
        self._collecting: Collecting | None = None
        if self.options.dial_only:
            self._collecting = Collecting(daemon.peer, daemon, contract, daemon, visits, security)
        daemon.outbox = self.outbox
        host, port = split_address(self.options.metrics_listen, "--metrics-listen")
        self.metrics_address, self._metrics_server = metrics.serve(host, port)
        self.server = PeerServer(
            daemon,
            contract,
            self.options.listen,
            security,
            visits=visits,
            collectors=self.collectors,
            reflection=self.options.reflection,
            ledger=daemon.audit,
        )
        self.server.start()  # last: until then, what goes wrong leaves nothing running
        dial_only = self.options.dial_only
        self.address = "" if dial_only else self.options.advertise or self.server.address

    def viewed(self, view: View, addresses: Mapping[PeerId, str]) -> None:
        """Reach the members of this view as it says: who has no address can only dial out."""
        own = self.daemon.peer
        neighbours = {*view.neighbours, *(peer for tree in view.trees for peer in tree)}
        dialled = {peer: addresses[peer] for peer in neighbours if addresses[peer]}
        self.collectors.expect({p: view.members[p] for p in neighbours - dialled.keys()})
        self.outbox.set_addresses({p: at for p, at in addresses.items() if p != own})
        if self._collecting is not None:
            self._collecting.set_neighbours(dialled, view.members[own])

    def _catch_up(self, candidate: Joined, own_step: int) -> int:
        """The run is under way: start from a member's model, unless ours is as far."""
        found = self.ask_donors(candidate)
        if found.step > own_step:
            self.trainer.flat.vector.copy_(found.vector)
            text = f"starting from step {found.step} of {found.peer_id}"
            logs.event(log, logging.INFO, "caught_up", text, step=found.step, donor=found.peer_id)
        return max(own_step, found.step)

    def ask_donors(self, candidate: Joined) -> RemoteModel:
        """The model of the first donor that gives one. Raises JoinError."""
        for donor in candidate.donors:
            try:
                found = read_model(
                    donor.address,
                    self.options.security,
                    peer_id=donor.peer_id,
                    run_id=candidate.run_id,
                    expected=self._expected,
                    patience_s=DONOR_PATIENCE_S,
                )
            except ReadModelError as error:
                log.warning("no model from %s: %s", donor.peer_id, error)
                continue
            return found
        raise JoinError("no member of the swarm could be asked for the model; try again later")

    @property
    def _expected(self) -> Expected:
        """Of any member's model. Pairwise peers with a script may be beyond the last step."""
        config = self.trainer.config
        steps = max(config.steps, len(config.algorithm.options.get("script", ())))
        vector = self.trainer.flat.vector
        return Expected(self.trainer.fingerprint, vector.numel(), vector.dtype, steps)


def contract_of(config: RunConfig, trainer: Learner) -> Contract:
    """What all members of a run agree upon, of a model like this trainer's."""
    flat = trainer.flat
    return Contract(
        run_id=config.run_id,
        fingerprint=flat.fingerprint,
        elements=flat.vector.numel(),
        dtype=flat.vector.dtype,
        trees=2 if config.topology.tree == "double-binary-trees" else 1,
        sections=find_algorithm(config.algorithm.name)[0].sections,
        wire_format=plain_format(config),
        lattice=lattice_setting(config),
        rounding=quantizer_setting(config),
        seed=config.seed,
    )


def law_of(options: PeerOptions) -> Law:
    """What `--site` demands. Raises ConfigError."""
    return NO_LAW if options.site is None else Law(site_config.load(options.site))


def audit_of(
    options: PeerOptions, law: Law, metrics: PeerMetrics, failed: Callable[[AuditError], None]
) -> Audit | None:
    """Of a peer with `--site`, the record of what leaves. Raises ConfigError."""
    if options.site is None:
        return None
    settings = law.config.audit
    if settings.file is None and options.state_dir is None:
        problem, remedy = "not set, and there is no --state-dir", "set it, or give --state-dir"
        raise ConfigError("audit.file", None, problem, remedy)
    path = Path(settings.file) if settings.file else Path(options.state_dir or "") / "audit.jsonl"
    return Audit(path, settings.digest, failed=failed, recorded=metrics.audited.inc)


def _lawful(candidate: Joined, options: PeerOptions, law: Law, audit: Audit | None) -> RunConfig:
    """The run config as the site's law lets this peer follow it. Raises LawError."""
    config = run_config.parse(candidate.run_config)
    try:
        applied = law.applied(config, options.task_file)
    except LawError as error:
        if audit is not None:
            audit.refused("law", str(error))
        raise
    if audit is not None:
        task = {"task": config.task.name[:TASK_NAME_LENGTH]}
        if config.task.file is not None and options.task_file is not None:
            task["task_file"] = file_digest(options.task_file)
        audit.accepted(config.run_id, candidate.run_config, task)
    return applied


def _task_trainer(config: RunConfig, shard: int, options: PeerOptions) -> Learner:
    config = _allowed(config, options)
    needs_data = not options.forwards
    site = make_site(config, shard, options.data_dir, options.peer_id, needs_data=needs_data)
    kind = Forwarder if options.forwards else Trainer
    return kind(load_task(config.task), config, site, _device(options.device))


BY_TASK = Learning(_task_trainer, TrainingThread)
"""The task that the run config names, in a thread of the peer's own."""


def _allowed(config: RunConfig, options: PeerOptions) -> RunConfig:
    """A coordinator names tasks; what that may load here, this operator: packages by name, and of
    files the one that `options` give, in the place of whatever the config says."""
    task = config.task
    if task.name == OWN_LOOP:
        return config  # `load_task` says what to start instead
    if task.file is None:
        OFFERED_TASKS.require_allowed(task.name, BUILT_IN, options.allow_tasks, "--allow-task")
        return config
    if options.task_file is None:
        raise ConfigError(
            "task.file",
            task.file,
            f"the task {task.name!r} of this run is in a file, and none has been allowed here",
            "if you have that file and trust it, start this peer with --task-file and its path",
        )
    own = task.model_copy(update={"file": str(options.task_file.absolute())})
    return config.model_copy(update={"task": own})


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
