"""One coordinator process from start to end.

What belongs here: how the parts are put together and taken apart, and what ends them.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from coordinator.announcer import Announcer, gave_up_text
from coordinator.conductor import Conductor
from coordinator.graph_files import LabelledGraph, read_graph
from coordinator.graphs import GraphError
from coordinator.metrics import Metrics
from coordinator.service import CoordinatorServer
from coordinator.store import Store
from coordinator.views import FILE, as_config_error, check_graph
from coordinator.web import Elections, Site, WebServer
from relayswarm import config as run_config
from relayswarm.config import RunConfig
from relayswarm.errors import ExitCode, QuorumError
from relayswarm.net.security import PLAIN, Security

log = logging.getLogger("relayswarm.coordinator")

NAP_S = 1.0
"""A signal that comes just before the main thread falls asleep is seen after this long."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    listen: str = "127.0.0.1:50050"
    metrics_listen: str = "127.0.0.1:0"
    store: Path | None = None
    reflection: bool = False
    json: bool = False
    exit_when_finished: bool = False
    security: Security = PLAIN


def serve(options: Options) -> ExitCode:
    """Run a coordinator in this process until it has done its part.

    Raises ConfigError if it cannot start, QuorumError if its peers did not come in time.
    """
    announcer = Announcer(sys.stdout if options.json else None)
    with closing(Store(options.store)) as store:
        config = _config(options, store)
        for text in config.warnings:
            log.warning("%s", text)
        conductor = Conductor(config, store, _file_graph(config))
        metrics, elections = Metrics(conductor), Elections()
        conductor.listeners += [metrics, elections, announcer]
        site = Site(conductor, elections, metrics.registry)
        with closing(WebServer(site, options.metrics_listen)) as web:
            server = CoordinatorServer(
                conductor, options.listen, options.security, reflection=options.reflection
            )
            with _signals(conductor) as caught:
                server.start()
                announcer.started(config.run_id, server.address, web.address)
                conductor.start()
                try:
                    _wait(conductor, caught, options.exit_when_finished)
                finally:
                    server.stop()
            return _verdict(conductor, caught)


def _verdict(conductor: Conductor, caught: list[int]) -> ExitCode:
    if conductor.failure:
        raise conductor.failure
    if conductor.gave_up:
        raise QuorumError(gave_up_text(conductor.gave_up))
    return ExitCode.INTERRUPTED if caught[:1] == [signal.SIGINT] else ExitCode.DONE


def _wait(conductor: Conductor, caught: list[int], exit_when_finished: bool) -> None:
    """Wait for a signal, a failure, the end of patience or, if wanted, the end of the run."""
    while True:
        while not conductor.ended.wait(NAP_S):
            pass
        conductor.ended.clear()
        if caught or conductor.failure or conductor.gave_up or exit_when_finished:
            return


@contextmanager
def _signals(conductor: Conductor) -> Iterator[list[int]]:
    """Ctrl+C and SIGTERM end the wait; which of them came, in order."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        caught.append(number)
        conductor.ended.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _config(options: Options, store: Store) -> RunConfig:
    """From --config, or else the run that the store holds, or else defaults; then --set."""
    stored = store.stored_config()
    if stored and options.config is None:
        return run_config.parse(stored.to_toml(), options.overrides)
    return run_config.load(options.config, options.overrides)


def _file_graph(config: RunConfig) -> LabelledGraph | None:
    """The graph of `topology.file`, if the run is on one; without a run that could not begin."""
    file = config.topology.file if config.topology.graph == FILE else None
    try:
        graph = read_graph(Path(file)) if file else None
        check_graph(config, graph)
    except GraphError as error:
        raise as_config_error(error) from error
    return graph
