"""A whole learning run in one process: the run config on a virtual clock and in-memory network.

The peers are the daemons' own parts (algorithm, driver, registers, trainer, codec, fault plan);
only sockets, threads and the coordinator's service are missing. With `deterministic = true` the
final parameters are those of a real swarm, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from coordinator.graph_files import read_graph
from coordinator.views import Layout, lay_out
from peer.algorithms.core import Averaged, Coef, Head, PeerId, Train
from peer.announce import finite
from peer.codec import Format, default_format, roundtrip
from peer.config import build_algorithm
from peer.faults import FaultPlan
from peer.outcome import RunOutcome
from peer.progress import Progress
from peer.registers import Outgoing, Registers
from peer.simulator.world import Delivery, Node, World
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, TrainResult, make_site
from peer.views import peer_ids, topology_event, views_of
from relayswarm.config import RunConfig
from relayswarm.task import Site

LOCAL_STEP_S = 1.0  # virtual
LATENCY_S = 0.001  # virtual

Listener = Callable[[dict[str, Any]], None]


class PlannedLink:
    """The in-memory network with the run's fault plan."""

    def __init__(self, config: RunConfig) -> None:
        self._plan = FaultPlan(config.faults, config.seed)
        self._known = config.faults.loss == "known"

    def __call__(self, sender: PeerId, to: PeerId, head: Head) -> Sequence[Delivery]:
        if not self._plan.drops(head.step, head.round, head.tree, sender, to):
            return (Delivery(LATENCY_S),)
        return (Delivery(LATENCY_S, lost=True),) if self._known else ()


class LearningBody:
    """A simulated peer's model, data and registers."""

    def __init__(self, trainer: Trainer, registers: Registers, wire_format: Format) -> None:
        self.trainer = trainer
        self.vectors = registers
        self._format = wire_format
        self.result: TrainResult | None = None
        self.sent = 0
        self.bytes_sent = 0

    def train(self, effect: Train) -> Coef:
        momentum = self.vectors[effect.momentum.name] if effect.momentum else None
        self.result = self.trainer.train(effect.step, effect.lr_scale, momentum)
        return self.result.lr

    def duration_s(self, effect: Train) -> float:  # noqa: ARG002
        return LOCAL_STEP_S * self.trainer.config.algorithm.local_steps

    def payload(self, outgoing: Outgoing) -> tuple[Tensor, ...]:
        sections = range(outgoing.sections)
        whole = (outgoing.read(k, 0, outgoing.elements) for k in sections)
        self.sent += 1
        self.bytes_sent += self._format.itemsize * outgoing.elements * outgoing.sections
        return tuple(roundtrip(vector, self._format) for vector in whole)


def simulate(config: RunConfig, data_dir: Path | None, progress: Listener) -> RunOutcome:
    """Run the swarm of `config` to its end; `progress` gets the events that processes announce.

    Raises ConfigError and DataError as the daemons do.
    """
    started = time.perf_counter()
    layout = _layout(config)
    run = Progress(config, layout.members)

    def tell(event: dict[str, Any]) -> None:
        run.observe(event)
        progress(event)

    world = World(PlannedLink(config))
    bodies = {
        peer: _add_peer(world, config, peer, make_site(config, k % config.shards, data_dir), tell)
        for k, peer in enumerate(layout.members)
    }
    tell(topology_event(layout))
    world.publish(views_of(layout, correct_lr=config.optimizer.relay_lr_correction))
    world.run(world.all_finished)
    for peer, body in bodies.items():
        tell(_finished(world.nodes[peer], body))
    models = {peer: body.trainer.flat.state_dict() for peer, body in bodies.items()}
    return run.outcome(time.perf_counter() - started, models)


def _layout(config: RunConfig) -> Layout:
    file = config.topology.file if config.topology.graph == "file" else None
    return lay_out(config, peer_ids(config.peers), read_graph(Path(file)) if file else None)


def _add_peer(
    world: World, config: RunConfig, peer: PeerId, site: Site, tell: Listener
) -> LearningBody:
    trainer = Trainer(load_task(config.task), config, site)
    algorithm = build_algorithm(config)
    flat = trainer.flat
    registers = Registers(flat.vector, algorithm.registers, flat.parameters_end)
    name = config.transport.wire_format
    wire_format = Format(name) if name else default_format(flat.vector.dtype)
    body = LearningBody(trainer, registers, wire_format)
    node = world.add(peer, algorithm, body)
    node.on_averaged = lambda effect: tell(_step(peer, body, effect))
    return body


def _step(peer: PeerId, body: LearningBody, effect: Averaged) -> dict[str, Any]:
    assert body.result is not None
    return {
        "event": "step",
        "peer": peer,
        "step": effect.step,
        "loss": finite(body.result.loss),
        "models_counted": int(effect.counted),
        "swarm_size": effect.swarm_size,
        "missed": effect.missed,
        "late": effect.late,
        "compute_s": body.result.seconds,
        "wait_s": effect.waited_s,
        "bytes_sent": body.bytes_sent,
    }


def _finished(node: Node, body: LearningBody) -> dict[str, Any]:
    trainer = body.trainer
    return {
        "event": "peer_finished",
        "peer": node.peer,
        "steps": node.algorithm.step,
        "metrics": {name: finite(m.value) for name, m in trainer.evaluate().items()},
        "messages_sent": body.sent,
        "messages_expected": sum(effect.expected for effect in node.history),
        "messages_missed": sum(effect.missed for effect in node.history),
        "bytes_sent": body.bytes_sent,
        "shard": trainer.site.shard,
        "shard_digest": trainer.data.digest(),
        "notes": list(getattr(trainer.data, "notes", ())),
    }
