"""A run from its config to its report, as `relayswarm up` and `relayswarm simulate` do it.

What belongs here: the order of things. Whatever the user could have got wrong is found before
anything is started or written.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from coordinator.graph_files import LabelledGraph, read_graph
from coordinator.graphs import GraphError
from coordinator.views import FILE, Layout, as_config_error, check_graph, lay_out
from peer.baseline import (
    Baseline,
    evaluate_mean,
    first_trainer,
    fitting_threads,
    has_full_gradients,
    swarm_batch,
    train_centralized,
)
from peer.config import check_algorithm
from peer.faults import check_peers, check_possible
from peer.localswarm.display import Display, choose_display
from peer.localswarm.swarm import CONFIG, LOGS, STATE, Commands, LocalCommands, LocalSwarm
from peer.outcome import RunOutcome
from peer.progress import Progress
from peer.rehearsal import try_once
from peer.report import Comparison, prepare_directory, write_report
from peer.training.flat import FlatModel
from peer.training.trainer import Trainer
from peer.views import peer_ids
from peer.weighting import check_weighting, weight_of
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError, ExitCode, QuorumError

if TYPE_CHECKING:
    from peer.simulator.stacked_training import Stacking


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class SessionOptions:
    """What the command line says besides the run config."""

    report: Path
    device: str = "auto"
    data_dir: Path | None = None
    as_json: bool = False
    baseline: bool = True
    stacked: Stacking = "off"  # of a simulation


def check(config: RunConfig, options: SessionOptions) -> Trainer:
    """Find what is wrong with a run before it begins; returns a trainer like the first peer's.

    A task in a file is tried out once, as nobody may have tried it before. Raises ConfigError or
    DataError.
    """
    check_settings(config)
    first = first_trainer(config, options.data_dir, usable_device(options.device))
    if config.task.file is not None:
        try_once(first)
    return first


def check_settings(config: RunConfig) -> None:
    """The part of `check` that needs no data. Raises ConfigError."""
    check_algorithm(config)
    check_peers(config, peer_ids(config.peers))
    check_weighting(config)
    for peer in peer_ids(config.peers):
        weight_of(config, peer, 1, forwards=peer in config.data.forward)
    try:
        check_graph(config, _file_graph(config))
    except GraphError as error:
        raise as_config_error(error) from error


def lay_out_run(config: RunConfig) -> Layout:
    """The topology that the run begins with. Raises ConfigError."""
    try:
        return lay_out(config, peer_ids(config.peers), _file_graph(config))
    except GraphError as error:
        raise as_config_error(error) from error


def _file_graph(config: RunConfig) -> LabelledGraph | None:
    file = config.topology.file if config.topology.graph == FILE else None
    return read_graph(Path(file)) if file else None


def usable_device(name: str) -> str:
    """`auto` means the GPU if torch can use one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def up(config: RunConfig, options: SessionOptions, commands: Commands | None = None) -> ExitCode:
    """Run a swarm of processes on this machine and report on it.

    Raises RelayswarmError for what the user can mend, and when no peer finished. Ctrl+C and
    SIGTERM end it early; the report then tells of the peers that had finished, if any.
    """
    check_possible(config.faults)
    first = check(config, options)
    directory = options.report
    _prepare(config, directory)
    commands = commands or LocalCommands(directory, options.device, options.data_dir, config)
    progress = Progress(config, peer_ids(config.peers))
    with choose_display(progress, as_json=options.as_json) as display, _interruptible():
        swarm = LocalSwarm(commands, progress.expected, directory / LOGS)
        run = _Run(progress, display)
        was_interrupted = run.follow(swarm)
        if was_interrupted and not run.has_something_to_report:
            return ExitCode.INTERRUPTED
        outcome = progress.outcome(run.wall_seconds, _models(progress))
        was_interrupted |= _report(outcome, options, first, display, skip=was_interrupted)
    if was_interrupted:
        return ExitCode.INTERRUPTED
    shutil.rmtree(directory / STATE, ignore_errors=True)  # of a run that is over
    return ExitCode.DONE


def simulate(config: RunConfig, options: SessionOptions) -> ExitCode:
    """Run the simulator in place of processes, and report as `up` does.

    Raises RelayswarmError for what the user can mend, and when no peer finished.
    """
    from peer.simulator.run import simulate as run_simulation
    from peer.simulator.stacked_run import is_wanted

    first = check(config, options)
    prepare_directory(options.report)
    progress = Progress(config, peer_ids(config.peers))
    with choose_display(progress, as_json=options.as_json) as display, _interruptible():

        def show(event: Mapping[str, Any]) -> None:
            progress.observe(event)
            display.event(event)

        stacked = is_wanted(config, options.stacked)
        with fitting_threads(first):
            how: Stacking = "on" if stacked else "off"
            outcome = run_simulation(config, options.data_dir, show, stacked=how)
        if not outcome.peers:
            raise _nobody_finished(outcome)
        outcome = outcome.simulated({**(outcome.simulation or {}), "stacked": stacked})
        was_interrupted = _report(outcome, options, first, display)
    return ExitCode.INTERRUPTED if was_interrupted else ExitCode.DONE


def _nobody_finished(outcome: RunOutcome) -> QuorumError:
    """The reason that a simulated swarm came to nothing, if its peers told one."""
    words = dict.fromkeys(word for lost in outcome.lost for word in lost.last_words)
    step = max((lost.last_step for lost in outcome.lost), default=0)
    reasons = "; ".join(words) or "it stood still"
    remedy = "change algorithm.name, peers or faults"
    return QuorumError(f"no peer finished, the furthest did {step} steps ({reasons}); {remedy}")


class _Run:
    """Follows a swarm to its end."""

    def __init__(self, progress: Progress, display: Display) -> None:
        self._progress = progress
        self._display = display
        self._began = self._ended = time.monotonic()

    @property
    def wall_seconds(self) -> float:
        return self._ended - self._began

    @property
    def has_something_to_report(self) -> bool:
        return any(peer.finished for peer in self._progress.in_order)

    def follow(self, swarm: LocalSwarm) -> bool:
        """Start it and show its events until the last peer has ended. True: we were told to end."""
        was_interrupted = False
        with swarm:
            try:
                swarm.start()
                for event in swarm.events():
                    self._take(event)
            except KeyboardInterrupt:
                was_interrupted = True
        for event in swarm.last_words():
            self._take(event)
        return was_interrupted

    def _take(self, event: Mapping[str, Any] | None) -> None:
        if event is not None:
            now = time.monotonic()
            self._progress.observe(event, now - self._began)
            if event["event"] == "peer_finished":
                self._ended = now
        self._display.event(event)


def _prepare(config: RunConfig, directory: Path) -> None:
    """The report's folder, empty logs, and the config for the coordinator."""
    prepare_directory(directory)
    for old in (LOGS, STATE):
        shutil.rmtree(directory / old, ignore_errors=True)
    (directory / LOGS).mkdir()
    (directory / CONFIG).write_text(config.to_toml(), encoding="utf-8")


def _models(progress: Progress) -> dict[str, Mapping[str, Tensor]]:
    """The final models of the peers that finished, from where they say they wrote them."""
    paths = {
        peer.id: Path(peer.finished["model"])
        for peer in progress.in_order
        if peer.finished and peer.finished.get("model")
    }
    return {peer: load_file(path) for peer, path in paths.items()}


def _report(
    outcome: RunOutcome,
    options: SessionOptions,
    first: Trainer,
    display: Display,
    *,
    skip: bool = False,
) -> bool:
    """Measure the mean model and, unless told to `skip` them or data are local, the baselines;
    write the report.

    True: Ctrl+C came meanwhile. The report is then without what had not been measured.
    """
    models = [peer.model for peer in outcome.peers if peer.model is not None]
    consensus = evaluate_mean(first, models) if models else None
    baselines: list[Baseline] = []
    was_interrupted = False
    if options.baseline and not skip and not outcome.config.data.is_local:
        try:
            for baseline in _baselines(first, outcome.config, display):
                baselines.append(baseline)
        except KeyboardInterrupt:
            was_interrupted = True
    whole, small = (*baselines, None, None)[:2]
    comparison = Comparison(consensus, whole, small)
    report = _written(outcome, options.report, comparison, first.flat)
    display.finished(report, options.report)
    return was_interrupted


def _written(
    outcome: RunOutcome, directory: Path, comparison: Comparison, flat: FlatModel
) -> dict[str, Any]:
    try:
        return write_report(
            outcome,
            directory,
            comparison,
            fingerprint=flat.fingerprint,
            shared_names=flat.shared_names,
        )
    except (OSError, SafetensorError) as error:
        remedy = f"make room; the peers' models are in {directory / STATE}"
        raise ConfigError("--report", str(directory), f"not written ({error})", remedy) from error


def _baselines(first: Trainer, config: RunConfig, display: Display) -> Iterator[Baseline]:
    """Training in one place, with the whole swarm's batch and then with a single peer's."""
    whole, one = swarm_batch(config), config.data.batch_size
    sizes: Sequence[int] = (whole, one)
    for size in sizes[:1] if has_full_gradients(first) or whole == one else sizes:
        name = f"centralized, batch {size}"
        yield train_centralized(first, size, _to(display, name, config.steps))


def _to(display: Display, name: str, steps: int) -> Callable[[int], None]:
    return lambda done: display.baseline(name, done, steps)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends us as Ctrl+C does, and SIGINT too where a shell started us in the background,
    which has us ignore it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
