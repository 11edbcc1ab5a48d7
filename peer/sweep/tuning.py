"""Finds the learning rate of one combination, and tells everything that was tried.

Two procedures of the RelaySGD paper. `bisection` (appendix C.4) for quadratics: the rate that
brings the mean of the models below a target first, and keeps it there; if no rate does, the one
that ends lowest. `grid` (appendix C.1) for learning: powers of two around the rate that is best
for centralized training, times the tree's learning-rate factor, then three seeds. A task whose
full gradients lead to no known suboptimality is tuned on the grid too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.graph_files import read_graph
from coordinator.stopping import higher_is_better
from coordinator.views import FILE, lay_out
from peer.baseline import (
    Baseline,
    first_site,
    first_trainer,
    has_full_gradients,
    plain,
    swarm_batch,
    train_centralized,
)
from peer.outcome import Metrics, headline, mean
from peer.simulator.stacked_training import Stacking
from peer.sweep.cell import TARGET_METRIC, Result, base_rate, run
from peer.sweep.grid import Cell
from peer.sweep.search import DIVERGED, Score, Tried, bisect, halve_until_all_converge, sandwich
from peer.views import peer_ids
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError

REPLICAS = 3
TARGET = 1e-6  # of suboptimality, as in figure 2
TAIL = 10  # a run has converged if the last tenth of its losses is below where it began

Losses = Sequence[tuple[int, float | None]]


@dataclass(frozen=True, slots=True)
class TuningJob:
    """A combination whose rate is to be found; `cell` has its first seed."""

    cell: Cell
    data_dir: Path | None = None
    target: float = TARGET
    stacked: Stacking = "auto"

    @property
    def key(self) -> str:
        """Of the file that keeps what is found."""
        return f"{self.cell.key}-{self.target:g}"


def tune(job: TuningJob) -> dict[str, Any]:
    """The rate, the procedure, and every run on the way, as JSON values.

    Raises ConfigError, before anything is run, if the task measures nothing to compare rates by.
    """
    config = job.cell.config
    first = first_trainer(config, job.data_dir, "cpu")
    measured = plain(first.evaluate())
    search = _Search(config, job.data_dir, job.target, job.stacked, _criterion(measured, config))
    start = base_rate(config, job.data_dir)
    found: dict[str, Any]
    if has_full_gradients(first) and TARGET_METRIC in measured:
        found = {"procedure": "bisection", "target": job.target, "rate": search.bisection(start)}
    else:
        found = {"procedure": "grid", **search.grid(start)}
    return {"combination": job.cell.combination, **found, **search.replicas(found["rate"])}


def _criterion(measured: Metrics, config: RunConfig) -> str:
    """The metric that tells which of two rates is better: what sums up a run."""
    names = headline(measured)
    if not names:
        problem = f"its evaluate measures nothing at {first_site(config)}, so that no learning "
        problem += "rate can be called better than another"
        remedy = "have it return a value such as loss, or leave out --tune and give --lr"
        raise ConfigError("task.name", config.task.name, problem, remedy)
    return names[0]


@dataclass
class _Search:
    """The runs of one tuning. `metric` is what the grid compares rates by."""

    config: RunConfig
    data_dir: Path | None
    target: float
    stacked: Stacking
    metric: str
    trials: list[dict[str, Any]] = field(default_factory=list)

    def bisection(self, start: float) -> float:
        return bisect(Tried(lambda rate: self._try(rate, self.config.seed, self._speed)), start)

    def grid(self, start: float) -> dict[str, Any]:
        """The rate and the search for that of centralized training."""
        alone = Tried(lambda rate: self._try_alone(rate))
        _, centralized, _ = sandwich(alone, start)
        factor = self._factor()
        tried = Tried(lambda rate: self._try(rate, self.config.seed, self._quality))
        _, rate, _ = sandwich(tried, centralized * factor)
        return {
            "rate": rate,
            "centralized": {
                "rate": centralized,
                "correction": factor,
                "trials": [{"rate": r, "score": _shown(s)} for r, s in alone.scores.items()],
            },
        }

    def replicas(self, rate: float) -> dict[str, Any]:
        """Three seeds, with half the rate while any of them diverges."""
        seeds = range(self.config.seed, self.config.seed + REPLICAS)
        known = {(trial["rate"], trial["seed"]): trial["converged"] for trial in self.trials}

        def converges(candidate: float, seed: int) -> bool:
            if (candidate, seed) not in known:
                self._try(candidate, seed, self._quality)
                known[candidate, seed] = self.trials[-1]["converged"]
            return bool(known[candidate, seed])

        rate, counts = halve_until_all_converge(rate, seeds, converges)
        return {
            "rate": rate,
            "replicas": REPLICAS,
            "converged": counts[-1][1],
            "converged_at": [{"rate": r, "converged": count} for r, count in counts],
            "trials": self.trials,
        }

    def _try(self, rate: float, seed: int, worth: Callable[[Result], Score]) -> Score:
        config = with_rate(self.config, rate).model_copy(update={"seed": seed})
        target = self.target if worth == self._speed else None
        result = run(config, self.data_dir, target, self.stacked)
        sites = result.outcome.sites
        converged = all(_converged(peer.losses, peer.metrics) for peer in sites) and len(sites) > 0
        score = worth(result) if converged else DIVERGED
        trial = {"rate": rate, "seed": seed, "score": _shown(score), "converged": converged}
        self.trials.append(trial | {"steps_to_target": result.steps_to_target})
        return score

    def _speed(self, result: Result) -> Score:
        """Steps to the target come first, and then how near the end is to it."""
        if result.steps_to_target is not None:
            return (0.0, float(result.steps_to_target))
        return (1.0, _number(result.consensus.get(TARGET_METRIC)))

    def _quality(self, result: Result) -> Score:
        return self._score([peer.metrics for peer in result.outcome.sites])

    def _score(self, metrics: Sequence[Metrics]) -> Score:
        """By the mean over the peers that measure it: some may have nothing to measure with."""
        value = _number(mean(m[self.metric] for m in metrics if self.metric in m))
        higher = higher_is_better(self.metric) and math.isfinite(value)
        return (0.0, -value if higher else value)

    def _try_alone(self, rate: float) -> Score:
        config = with_rate(self.config, rate)
        first = first_trainer(config, self.data_dir, "cpu")
        baseline: Baseline = train_centralized(first, swarm_batch(config))
        converged = _converged(baseline.losses, baseline.metrics)
        return self._score([baseline.metrics]) if converged else DIVERGED

    def _factor(self) -> float:
        """What the tree takes from every update (appendix D.1), unless peers correct it anyway."""
        config = self.config
        if config.algorithm.name != "relaysgd" or config.optimizer.relay_lr_correction:
            return 1.0
        file = config.topology.file if config.topology.graph == FILE else None
        graph = read_graph(Path(file)) if file else None
        return float(lay_out(config, peer_ids(config.peers), graph).lr_factor)


def with_rate(config: RunConfig, rate: float) -> RunConfig:
    """The same run with this learning rate."""
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": rate})})


def row_columns(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of the table says of its tuning."""
    return {
        "tuning": found["procedure"],
        "tried_rates": len({trial["rate"] for trial in found["trials"]}),
        "converged_replicas": found["converged"],
        "replicas": found["replicas"],
    }


def _converged(losses: Losses, metrics: Metrics) -> bool:
    """No number that is not finite, and the training loss ends below where it began."""
    values = [loss for _, loss in losses if loss is not None]
    if len(values) < len(losses) or None in metrics.values() or not values:
        return False
    tail = values[-max(1, len(values) // TAIL) :]
    return sum(tail) / len(tail) < values[0]


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _shown(score: Score) -> list[float] | None:
    """A score as JSON; None for a run that diverged."""
    return list(score) if all(map(math.isfinite, score)) else None
