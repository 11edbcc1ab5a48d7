"""A whole learning run in one process: the run config on a virtual clock and in-memory network.

The peers are the daemons' own parts (algorithm, driver, registers, trainer, codec, fault plan);
only sockets, threads and the coordinator's service are missing. With `deterministic = true` the
final parameters are those of a real swarm, bit for bit.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coordinator.graph_files import LabelledGraph, read_graph
from coordinator.members import SwarmMetric, SwarmMetrics
from coordinator.stopping import Stopping, StopRule
from coordinator.views import FILE, lay_out
from peer.algorithms.core import (
    Averaged,
    Event,
    Gone,
    NewView,
    PeerId,
    Train,
)
from peer.algorithms.pairwise import Pairwise
from peer.baseline import first_site, plain
from peer.codec import Format
from peer.config import build_algorithm, follows_swarm, is_pairwise
from peer.faults import FaultPlan
from peer.outcome import RunOutcome
from peer.progress import Progress
from peer.simulator.coordination import Coordination
from peer.simulator.lattice_wire import LatticeWire, PairWire, PlainWire
from peer.simulator.learning_body import LOCAL_STEP_S, FormedRegisters, LearningBody, format_of
from peer.simulator.metric_mail import MetricMail
from peer.simulator.planned import Crashes, PlannedLink
from peer.simulator.telling import Listener, MeanModels, is_told, step_event, stood_still
from peer.simulator.traffic import Cost, Meter
from peer.simulator.world import Node, Wire, World
from peer.tasks.registry import load_task
from peer.training.forwarder import Forwarder
from peer.training.trainer import Trainer, folder_of, make_site
from peer.views import peer_ids, topology_event, views_of
from peer.weighting import shards_of, weight_of
from peer.wire_format import lattice_setting, quantizer
from relayswarm.config import RunConfig

PATIENCE = 4  # deadlines and leases that may pass without a step before a run is given up


class Simulation:
    """One simulated run."""

    def __init__(
        self, config: RunConfig, data_dir: Path | None, progress: Listener, mean_every: int
    ) -> None:
        self._config, self._data_dir, self._listener = config, data_dir, progress
        self._plan = FaultPlan(config.faults, config.seed)
        self._members = peer_ids(config.peers)
        self._progress = Progress(config, self._members)
        self._bodies: dict[PeerId, LearningBody] = {}
        self._weights: dict[PeerId, float] = {}
        self._trained_at = 0.0
        stop = config.stop
        hours = stop.max_hours
        rule = StopRule(None if hours is None else 3600 * hours, stop.metric, stop.patience)
        self._stopping, self._stop_step, self._diameter = Stopping(rule, 0.0), 0, 0
        first = self._trainer(first_site(config), 0)
        fmt = format_of(first)
        writes = lattice_setting(config) or is_pairwise(config.algorithm.name)
        self._meter = Meter(first.flat.vector.numel(), None if writes else fmt)
        self._world = World(
            PlannedLink(self._plan),
            ordered=not config.faults.reorder,
            reachable=lambda a, b: not self._plan.parted(self._world.now, a, b),
            traffic=self._meter,
            wire=self._wire(fmt),
            follows_swarm=follows_swarm(config) and not first.settings.is_constant,
            linger_s=config.transport.linger_s,
        )
        self._mail = MetricMail(PlannedLink(self._plan), self._world.connected, self._world)
        self._crashes = Crashes(self._plan, self._world, self._crashed, self._come_back)
        self._coordination: Coordination | None = None
        self._mean = MeanModels(first, mean_every, config.peers, self._tell)

    def run(self) -> RunOutcome:
        """To the end, or until nothing can come any more."""
        started = time.perf_counter()
        for peer, shard in shards_of(self._config, self._members).items():
            self._crashes.schedule(peer)
            self._add(peer, shard)
        self._begin()
        self._world.run(self._over)
        for peer, node in self._world.nodes.items():
            if node.finished_at is not None:
                self._tell(self._finished(node, self._bodies[peer]), node.finished_at)
            elif node.alive:
                self._tell(stood_still(peer, node.algorithm))
        self._mail.settle()
        models = {peer: body.trainer.flat.state_dict() for peer, body in self._bodies.items()}
        outcome = self._progress.outcome(time.perf_counter() - started, models)
        return outcome.simulated(self._cost().as_json())

    def models(self) -> Tensor:
        """All peers' models as they are now, shape (peers, elements)."""
        return torch.stack([body.trainer.flat.vector for body in self._bodies.values()])

    def _wire(self, fmt: Format) -> Wire | None:
        """None where all that is sent takes the bytes of `fmt`."""
        setting = lattice_setting(self._config)
        if setting:
            return LatticeWire(setting, self._config.seed, self._meter)
        if quantizer(self._config):
            return PairWire(self._vectors, self._shared, fmt, self._meter)
        return PlainWire(fmt, self._meter) if is_pairwise(self._config.algorithm.name) else None

    def _vectors(self, peer: PeerId) -> FormedRegisters:
        return self._bodies[peer].vectors

    def _shared(self, peer: PeerId) -> Tensor:
        algorithm = self._world.nodes[peer].algorithm
        assert isinstance(algorithm, Pairwise)
        return self._vectors(peer)[algorithm.shared.name]

    def _cost(self) -> Cost:
        nodes = self._world.nodes.values()
        ends = [node.finished_at for node in nodes if node.finished_at is not None]
        return self._meter.cost(max(ends, default=0.0), max(node.depth for node in nodes))

    # --- topology ----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Hand out the first epoch; it is the only one, unless peers crash."""
        config = self._config
        file = config.topology.file if config.topology.graph == FILE else None
        graph = read_graph(Path(file)) if file else None
        if config.faults.crash:
            self._coordinate(graph)
            return
        layout = lay_out(config, self._members, graph, self._weights)
        self._tell(topology_event(layout))
        self._world.publish(views_of(layout, correct_lr=config.optimizer.relay_lr_correction))

    def _coordinate(self, graph: LabelledGraph | None) -> None:
        fingerprint = next(iter(self._bodies.values())).trainer.fingerprint
        self._coordination = Coordination(
            self._config, self._world, fingerprint, self._tell, graph, self._weights
        )
        for peer in self._members:
            self._coordination.join(peer)

    def _over(self) -> bool:
        nodes = self._world.nodes.values()
        if self._crashes.awaited or any(n.alive and n.finished_at is None for n in nodes):
            return self._coordination is not None and self._stands_still()
        return True

    def _stands_still(self) -> bool:
        """Leases are renewed for ever: has training come to an end before its time?"""
        config = self._config
        slowest = LOCAL_STEP_S * config.algorithm.local_steps
        slowest *= max([1.0, *config.faults.slow.values()])
        slowest += config.algorithm.time_budget_s or 0.0
        patience_s = config.transport.deadline_s + config.coordinator.lease_s + slowest
        since = self._world.now - self._trained_at
        return not self._crashes.awaited and since > PATIENCE * patience_s

    # --- peers -------------------------------------------------------------------------------

    def _trainer(self, peer: PeerId, shard: int) -> Trainer:
        config = self._config
        kind = Forwarder if peer in config.data.forward else Trainer
        site = make_site(config, shard, folder_of(config, self._data_dir, peer), peer)
        return kind(load_task(config.task), config, site)

    def _add(self, peer: PeerId, shard: int, donor: PeerId | None = None) -> int:
        """Start a peer, with the donor's model if there is one; returns the step it starts at."""
        forwards = peer in self._config.data.forward
        trainer, step = self._trainer(peer, shard), 0
        weight = weight_of(self._config, peer, trainer.samples, forwards=forwards)
        self._weights[peer] = weight
        if donor:
            step = self._world.nodes[donor].algorithm.step
            trainer.flat.vector.copy_(self._bodies[donor].trainer.flat.vector)
        algorithm = build_algorithm(self._config, step)
        flat = trainer.flat
        roles, rounding = algorithm.registers, quantizer(self._config)
        registers = FormedRegisters(flat.vector, roles, flat.parameters_end, rounding)
        box = self._mail.open(peer, self._config, self._learnt, weight)
        body = LearningBody(trainer, registers, self._plan.slow_down(peer), box.is_due)
        node = self._world.add(peer, algorithm, body)
        node.on_event = partial(self._heard, peer)
        node.on_train = partial(self._trains, peer, body)
        node.on_averaged = partial(self._averaged, peer, body)
        self._bodies[peer] = body
        if self._stop_step:
            self._stop(peer)
        return step

    def _crashed(self, peer: PeerId) -> None:
        words = f"crashed by the fault plan at {self._world.now:g} virtual seconds"
        self._tell({"event": "peer_exited", "peer": peer, "exit_code": None, "stderr": [words]})

    def _come_back(self, peer: PeerId) -> None:
        """A new life: ask the coordinator, take over a neighbour's model, become a member."""
        assert self._coordination is not None
        admitted = self._coordination.ask(peer)
        if admitted is None:
            return  # the run is over
        shard, donors = admitted
        able = [donor for donor in donors if self._world.nodes[donor].alive]
        if donors and not able:
            return
        step = self._add(peer, shard, able[0] if able else None)
        self._tell({"event": "peer_started", "peer": peer})
        self._coordination.join(peer, step)

    # --- events ------------------------------------------------------------------------------

    def _tell(self, event: dict[str, Any], at: float | None = None) -> None:
        self._progress.observe(event, self._world.now if at is None else at)
        self._listener(event)

    def _learnt(self, event: dict[str, Any]) -> None:
        """What a peer knows of the swarm's metrics; when they say so, the run ends."""
        self._tell(event)
        names = event["metrics"]
        means = tuple(
            SwarmMetric(k, math.nan if v is None else v, 1.0, 1) for k, v in names.items()
        )
        swarm = SwarmMetrics(event["step"], event["peers"], means)
        measuring = sum(self._weights[peer] > 0 for peer in self._alive)
        self._stopping.heard(event["peer"], swarm, measuring)
        self._consider_the_end()

    @property
    def _alive(self) -> list[PeerId]:
        return [peer for peer, node in self._world.nodes.items() if node.alive]

    def _consider_the_end(self) -> None:
        reason = None if self._stop_step else self._stopping.due(self._world.now, self._alive)
        if reason is None:
            return
        nodes = self._world.nodes
        furthest = max(node.algorithm.step for node in nodes.values())
        diameter = self._diameter
        self._stop_step = min(furthest + diameter + 1, self._config.steps)
        for peer in nodes:
            self._stop(peer)
        self._tell({"event": "stop", "step": self._stop_step, "reason": reason})

    def _stop(self, peer: PeerId) -> None:
        self._world.nodes[peer].algorithm.stop_before(self._stop_step)
        self._mail.boxes[peer].stop_before(self._stop_step)

    def _heard(self, peer: PeerId, event: Event) -> None:
        """What a peer's metrics have to know too."""
        match event:
            case NewView(view):
                self._diameter = view.diameter
                self._mail.boxes[peer].viewed(view)
            case Gone(other, None):
                self._mail.boxes[peer].gone(other)

    def _trains(self, peer: PeerId, body: LearningBody, effect: Train) -> None:
        """Before a step, while the model is x^(t): crash, or evaluate, if it is time to."""
        self._crashes.begins(peer, effect)
        if not self._world.nodes[peer].alive:
            return
        self._trained_at = self._world.now
        self._consider_the_end()
        self._meter.trained(peer, body.local_steps(effect))
        every = self._config.evaluation.every
        if every and effect.step % every == 0 and effect.step > 0:
            measured = body.evaluate(effect.step)
            event = {"event": "evaluation", "peer": peer, "step": effect.step}
            self._tell({**event, "metrics": plain(measured)})
            self._mail.boxes[peer].measured(effect.step, measured)

    def _averaged(self, peer: PeerId, body: LearningBody, effect: Averaged) -> None:
        assert body.result is not None
        if is_told(self._config, effect.step):
            result, sent = body.result, self._meter.bytes_sent(peer)
            taken, seconds = result.local_steps, result.seconds
            self._tell(step_event(peer, effect, result.loss, taken, seconds, sent))
        self._mean.add(effect.step + 1, body.trainer.flat.vector)

    def _finished(self, node: Node, body: LearningBody) -> dict[str, Any]:
        trainer, peer = body.trainer, node.peer
        measured = body.evaluate(node.algorithm.step)
        self._mail.boxes[peer].measured_last(measured)
        return {
            "event": "peer_finished",
            "peer": peer,
            "steps": node.algorithm.step,
            "metrics": plain(measured),
            "messages_sent": self._meter.messages_sent[peer],
            "messages_retried": self._meter.messages_retried[peer],
            "messages_expected": sum(effect.expected for effect in node.history),
            "messages_missed": sum(effect.missed for effect in node.history),
            "messages_timed_out": sum(effect.timed_out for effect in node.history),
            "waited_s": sum(effect.waited_s for effect in node.history),
            "local_steps": self._meter.local_steps[peer],
            "privacy": trainer.privacy_spent(),
            "bytes_sent": self._meter.bytes_sent(peer),
            "shard": trainer.site.shard,
            "weight": self._weights[peer],
            "shard_digest": trainer.data.digest(),
            "notes": list(getattr(trainer.data, "notes", ())),
        }
