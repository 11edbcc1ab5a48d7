"""A whole learning run with all peers' vectors in one table, stacked or each with its own trainer:
what `learning.Simulation` is with an object of every kind per peer.

The events are the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from coordinator.graph_files import read_graph
from coordinator.views import FILE, Layout, lay_out
from peer.algorithms.core import Averaged, PeerId
from peer.baseline import plain
from peer.config import build_algorithm, follows_swarm, is_pairwise
from peer.faults import FaultPlan
from peer.outcome import RunOutcome
from peer.progress import Progress
from peer.simulator.lattice_wire import PlainWire
from peer.simulator.learning_body import LOCAL_STEP_S, format_of
from peer.simulator.metric_mail import MetricMail
from peer.simulator.planned import PlannedLink
from peer.simulator.stacked import Bodies, ByStep, StackedSwarm, may_repeat
from peer.simulator.stacked_training import Stacking, choose
from peer.simulator.table import Table
from peer.simulator.telling import Listener, MeanModels, is_told, step_event, stood_still
from peer.simulator.traffic import Meter
from peer.simulator.world import World
from peer.training.trainer import folder_of, make_site
from peer.views import peer_ids, topology_event, views_of
from peer.weighting import shards_of, weight_of
from peer.wire_format import LATTICE
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError


def is_wanted(config: RunConfig, stacking: Stacking) -> bool:
    """Whether a run's peers are to be stacked; `auto` is wherever they can be.

    Raises ConfigError if they must be and cannot.
    """
    obstacle = _obstacle(config)
    if stacking == "on" and obstacle:
        raise ConfigError("--stacked", "on", obstacle, "say auto, or change that")
    return stacking != "off" and not obstacle


def is_better_recorded(config: RunConfig) -> bool:
    """Whether a run whose peers train one by one is to be a `StackedSimulation` all the same: its
    steps may repeat, and then take a third of the time, with the same bits."""
    return may_repeat(config) and not _obstacle(config)


def _obstacle(config: RunConfig) -> str | None:
    if config.faults.crash:
        return "peers that crash and rejoin cannot be stacked"
    if config.data.forward:
        return "peers without data cannot be stacked"
    if config.evaluation.before_averaging:
        return "an evaluation before averaging cannot be stacked"
    options = config.algorithm.options.keys()
    if {"geometric", "script", "time_budget_s"} & options or config.algorithm.time_budget_s:
        return "a number of local steps that varies cannot be stacked"
    if config.privacy.clip is not None:
        return "movements that are clipped cannot be stacked"
    stop = config.stop
    if stop.common_model or stop.metric or stop.max_hours:
        return "a run that ends early, or in a common model, cannot be stacked"
    if config.robust.clip is not None:
        return "messages that are held to a distance cannot be stacked"
    if LATTICE in (config.transport.wire_format, config.algorithm.quantize):
        return "messages on the lattice, each next to the last one, cannot be stacked"
    return None


class StackedSimulation:
    """One simulated run with stacked peers."""

    def __init__(
        self,
        config: RunConfig,
        data_dir: Path | None,
        progress: Listener,
        mean_every: int = 0,
        stacking: Stacking = "auto",
        device: str = "cpu",
    ) -> None:
        """See `run.simulate`."""
        self._started = time.perf_counter()
        self._config, self._listener = config, progress
        self._members = peer_ids(config.peers)
        self._progress = Progress(config, self._members)
        self._sites = [
            make_site(config, shard, folder_of(config, data_dir, peer), peer)
            for peer, shard in shards_of(config, self._members).items()
        ]
        self.choice = choose(config, self._sites, device, stacking)
        self._mean_every = mean_every
        self._mean = MeanModels(self.choice.first, mean_every, config.peers, self._tell)
        self._seconds = 0.0  # of the training and averaging that was last done, for each peer
        self._begun = self._started
        self._weights = {
            peer: weight_of(config, peer, len(self.choice.steps.data(k)))
            for k, peer in enumerate(self._members)
        }
        self._layout = _layout(config, self._weights)
        self._views = list(views_of(self._layout, correct_lr=config.optimizer.relay_lr_correction))
        self.swarm = self._swarm()

    def run(self) -> RunOutcome:
        """To the end, or until nothing can come any more."""
        self._tell(topology_event(self._layout))
        for view in self._views:
            weight = self._weights[view.me]
            self._mail.open(view.me, self._config, self._tell, weight).viewed(view)
        self._begun = time.perf_counter()
        self.swarm.run()
        models = self.models()
        for k, peer in enumerate(self._members):
            if self.swarm.finished(k):
                self._tell(self._finished(k, peer, models[k]), self.swarm.end_s)
            else:
                self._tell(stood_still(peer, self.swarm.algorithm(k)), self.swarm.end_s)
        self._mail.settle()
        numbered = enumerate(self._members)
        states = {peer: self.choice.steps.state_dict(k, models[k]) for k, peer in numbered}
        outcome = self._progress.outcome(time.perf_counter() - self._started, states)
        cost = self._meter.cost(self.swarm.end_s, self.swarm.depth)
        return outcome.simulated(cost.as_json())

    def models(self) -> Tensor:
        """All peers' models as they are now, shape (peers, elements)."""
        return self.swarm.table.models()

    def _swarm(self) -> StackedSwarm:
        config, first = self._config, self.choice.first
        plan = FaultPlan(config.faults, config.seed)
        wire_format = format_of(first)
        elements = self.choice.start.numel()
        pairs = is_pairwise(config.algorithm.name)
        self._meter = Meter(elements, None if pairs else wire_format)
        world = World(
            PlannedLink(plan),
            ordered=not config.faults.reorder,
            reachable=lambda a, b: not plan.parted(world.now, a, b),
            traffic=self._meter,
            wire=PlainWire(wire_format, self._meter) if pairs else None,
            follows_swarm=follows_swarm(config) and not first.settings.is_constant,
            linger_s=config.transport.linger_s,
        )
        seconds = [LOCAL_STEP_S * plan.slow_down(peer) for peer in self._members]
        bodies = Bodies(lru_cache(maxsize=8)(first.lr), seconds)  # all ask for the same step
        views = self._views
        roles = list(build_algorithm(config).registers.values())
        end = first.flat.parameters_end
        table = Table(
            self.choice.start,
            config.peers,
            roles,
            len(views[0].trees),
            wire_format,
            end,
            is_exact=not self.choice.is_stacked,
        )
        swarm = StackedSwarm(config, views, self.choice.steps, table, world, self._meter, bodies)
        parted = plan.parted
        self._mail = MetricMail(PlannedLink(plan), lambda a, b: not parted(world.now, a, b))
        swarm.before_training = self._before_training
        swarm.after_plan = self._after_plan
        return swarm

    # --- events ------------------------------------------------------------------------------

    def _tell(self, event: dict[str, Any], at: float = 0.0) -> None:
        self._progress.observe(event, at)
        self._listener(event)

    def _before_training(self, peers: Sequence[int], step: int) -> None:
        """Evaluate, while the models are x^(t), if it is time to."""
        every = self._config.evaluation.every
        if not every or step % every or step == 0:
            return
        models = self.models()
        for k in peers:
            measured = self.choice.steps.evaluate(k, models[k])
            event = {"event": "evaluation", "peer": self._members[k], "step": step}
            self._tell({**event, "metrics": plain(measured)})
            self._mail.boxes[self._members[k]].measured(step, measured)
        self._mail.run_out()

    def _after_plan(self, averaged: ByStep, shift: int) -> None:
        now = time.perf_counter()
        peers = sum(map(len, averaged.values()))
        self._seconds, self._begun = (now - self._begun) / max(peers, 1), now
        for recorded, effects in averaged.items():
            step = recorded + shift
            if is_told(self._config, step):
                self.swarm.account()
                counted = self.swarm.counted(recorded, effects)
                for (k, effect), count in zip(effects, counted, strict=True):
                    self._tell(self._step(k, effect, step) | {"models_counted": count})
            if self._mean_every and (step + 1) % self._mean_every == 0:
                models = self.models()
                for k, _ in effects:
                    self._mean.add(step + 1, models[k])

    def _step(self, k: int, effect: Averaged, step: int) -> dict[str, Any]:
        peer, loss = self._members[k], self.swarm.losses[k]
        taken = self._config.algorithm.local_steps
        sent = self._meter.bytes_sent(peer)
        told = step_event(peer, effect, loss, taken, self._seconds, sent)
        return {**told, "step": step}

    def _finished(self, k: int, peer: PeerId, model: Tensor) -> dict[str, Any]:
        data = self.choice.steps.data(k)
        measured = self.choice.steps.evaluate(k, model)
        self._mail.boxes[peer].measured_last(measured)
        return {
            "event": "peer_finished",
            "peer": peer,
            "steps": self.swarm.steps_done(k),
            "metrics": plain(measured),
            "messages_sent": self._meter.messages_sent[peer],
            "messages_retried": self._meter.messages_retried[peer],
            "messages_expected": self.swarm.expected[k],
            "messages_missed": self.swarm.missed[k],
            "messages_timed_out": self.swarm.timed_out[k],
            "waited_s": self.swarm.waited_s[k],
            "local_steps": self._meter.local_steps[peer],
            "bytes_sent": self._meter.bytes_sent(peer),
            "shard": self._sites[k].shard,
            "weight": self._weights[peer],
            "shard_digest": data.digest(),
            "notes": list(getattr(data, "notes", ())),
        }


def _layout(config: RunConfig, weights: Mapping[PeerId, float]) -> Layout:
    file = config.topology.file if config.topology.graph == FILE else None
    graph = read_graph(Path(file)) if file else None
    return lay_out(config, peer_ids(config.peers), graph, weights)
