"""What a peer consists of: put together in order, taken down in reverse.

What belongs here: from options and run config to objects that work together. What a peer does with
them is in `peer.service`.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from peer import config as algorithms
from peer.algorithms import ALGORITHMS
from peer.announce import Announcer
from peer.checkpoints import Checkpoints
from peer.config import build_algorithm, find_algorithm
from peer.daemon import Daemon
from peer.faults import FaultPlan
from peer.metrics import PeerMetrics
from peer.tasks import registry as tasks
from peer.tasks.registry import load_task
from peer.training.checkpoint import export_model
from peer.training.trainer import Trainer, make_site
from peer.transport.client import Exchanges, Outbox
from peer.transport.contract import Contract
from peer.transport.coordinator_client import Joined
from peer.transport.read_model import ReadModelError, read_model
from peer.transport.remote_model import Expected, RemoteModel
from peer.transport.server import PeerServer
from peer.transport.visits import Visits
from peer.wire_format import lattice_setting, plain_format, quantizer_setting
from relayswarm import config as run_config
from relayswarm import logs
from relayswarm.config import RunConfig
from relayswarm.errors import JoinError
from relayswarm.net.address import split_address
from relayswarm.net.security import PLAIN, Security

log = logging.getLogger("relayswarm.peer")

GRACE_S = 5.0  # for messages under way and calls in progress when a peer ends
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
    stay: bool = False
    reflection: bool = False
    json_events: bool = False
    security: Security = PLAIN
    allow_tasks: tuple[str, ...] = ()  # of packages; built-in ones always are
    allow_algorithms: tuple[str, ...] = ()


class Parts:
    """What a member consists of. Leaving it as a context takes it down.

    Raises RelayswarmError for what the user can mend.
    """

    def __init__(
        self, options: PeerOptions, candidate: Joined, metrics: PeerMetrics, announce: Announcer
    ) -> None:
        self.options = options
        config = run_config.parse(candidate.run_config)
        _require_allowed(config, options)
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
            announce,
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
        contract = contract_of(config, self.trainer)
        daemon = self.daemon
        plan = FaultPlan(config.faults, config.seed)
        security = self.options.security
        visits = Visits()
        pairs = Exchanges(daemon, visits)
        self.outbox = Outbox(daemon.peer, contract, plan, daemon, security, pairs)
        daemon.outbox = self.outbox
        host, port = split_address(self.options.metrics_listen, "--metrics-listen")
        self.metrics_address, self._metrics_server = metrics.serve(host, port)
        self.server = PeerServer(
            daemon,
            contract,
            self.options.listen,
            security,
            visits=visits,
            reflection=self.options.reflection,
        )
        self.server.start()  # last: until then, what goes wrong leaves nothing running
        self.address = self.options.advertise or self.server.address

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


def contract_of(config: RunConfig, trainer: Trainer) -> Contract:
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


def _require_allowed(config: RunConfig, options: PeerOptions) -> None:
    """A coordinator names tasks and algorithms; which packages that may import, this operator."""
    known = (
        (tasks.OFFERS, config.task.name, tasks.BUILT_IN, options.allow_tasks),
        (algorithms.OFFERS, config.algorithm.name, ALGORITHMS, options.allow_algorithms),
    )
    for offers, name, built_in, allowed in known:
        offers.require_allowed(name, built_in, allowed, f"--allow-{offers.noun}")


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
