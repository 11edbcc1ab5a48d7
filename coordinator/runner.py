"""One coordinator process from start to end.

What belongs here: how the parts are put together and taken apart, and what ends them.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from coordinator.announcer import Announcer, gave_up_text
from coordinator.conductor import Conductor
from coordinator.graph_files import LabelledGraph, read_graph
from coordinator.graphs import GraphError
from coordinator.metrics import Metrics
from coordinator.reach import no_tree_text
from coordinator.service import CoordinatorServer
from coordinator.store import RunStore, Store
from coordinator.views import FILE, as_config_error, check_graph
from coordinator.web import Elections, Site, WebServer, door
from relayswarm.config import RunConfig
from relayswarm.errors import ExitCode, JoinError, QuorumError
from relayswarm.net.security import PLAIN, Security
from relayswarm.settings import Override, load_over, parse_over

log = logging.getLogger("relayswarm.coordinator")

ETCD = "etcd://"
TOLD_S = 5.0
"""For members to hear that the run ends as there is no tree."""
NAP_S = 1.0
"""A signal that comes just before the main thread falls asleep is seen after this long."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    config: Path | None = None
    overrides: tuple[Override, ...] = ()
    listen: str = "127.0.0.1:50050"
    metrics_listen: str = "127.0.0.1:0"
    store: str | None = None  # a file, or etcd://HOST:PORT
    reflection: bool = False
    json: bool = False
    exit_when_finished: bool = False
    security: Security = PLAIN
    insecure_http: bool = False


def serve(options: Options) -> ExitCode:
    """Run a coordinator in this process until it has done its part.

    Raises ConfigError if it cannot start, QuorumError if its peers did not come in time,
    JoinError if no tree can hold its peers, LeadershipError if another coordinator may lead in its
    place.
    """
    announcer = Announcer(sys.stdout if options.json else None)
    lost: list[Exception] = []
    with _signals() as signals, closing(_store(options)) as store:
        config = _config(options, store)
        if store.is_shared:
            announcer.standing_by(str(options.store))
        if not store.lead(lambda: bool(signals.caught), lost.append):
            return _interrupted(signals)
        config = _config(options, store)  # another one may have begun the run meanwhile
        for text in config.warnings:
            log.warning("%s", text)
        conductor = Conductor(config, store, _file_graph(config))
        metrics, elections = Metrics(conductor), Elections()
        conductor.listeners += [metrics, elections, announcer]
        entry = door(options.metrics_listen, options.security, insecure=options.insecure_http)
        site = Site(conductor, elections, metrics.registry, entry.tokens)
        with closing(WebServer(site, options.metrics_listen, entry.context)) as web:
            server = CoordinatorServer(
                conductor, options.listen, options.security, reflection=options.reflection
            )
            signals.wake = conductor.ended.set
            server.start()
            announcer.started(config.run_id, server.address, web.address, web.url)
            conductor.start()
            try:
                _wait(conductor, signals, lost, options.exit_when_finished)
                conductor.await_told(TOLD_S)
            finally:
                server.stop()
            return _verdict(conductor, signals)


def _store(options: Options) -> RunStore:
    if options.store is not None and options.store.startswith(ETCD):
        from coordinator.etcd_store import EtcdStore  # with all that asyncio brings

        return EtcdStore(options.store)
    return Store(Path(options.store) if options.store else None)


def _verdict(conductor: Conductor, signals: Signals) -> ExitCode:
    if conductor.failure:
        raise conductor.failure
    if conductor.no_tree:
        raise JoinError(no_tree_text(conductor.no_tree.present))
    if conductor.gave_up:
        raise QuorumError(gave_up_text(conductor.gave_up))
    return _interrupted(signals)


def _interrupted(signals: Signals) -> ExitCode:
    return ExitCode.INTERRUPTED if signals.caught[:1] == [signal.SIGINT] else ExitCode.DONE


def _wait(
    conductor: Conductor, signals: Signals, lost: list[Exception], exit_when_finished: bool
) -> None:
    """Wait for a signal, a failure, the end of patience or, if wanted, the end of the run."""
    while True:
        while not (signals.caught or lost or conductor.ended.wait(NAP_S)):
            pass
        conductor.ended.clear()
        if lost:
            conductor.fail(lost[0])
        gave_up = conductor.gave_up or conductor.no_tree
        if signals.caught or conductor.failure or gave_up or exit_when_finished:
            return


@dataclass
class Signals:
    """Ctrl+C and SIGTERM, in the order in which they came, and whom to wake then."""

    caught: list[int] = field(default_factory=list)
    wake: Callable[[], None] = lambda: None


@contextmanager
def _signals() -> Iterator[Signals]:
    """Ctrl+C and SIGTERM end the wait."""
    signals = Signals()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        signals.caught.append(number)
        signals.wake()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _config(options: Options, store: RunStore) -> RunConfig:
    """From --config, or else the run that the store holds, or else defaults; then overrides."""
    stored = store.stored_config()
    if stored and options.config is None:
        return parse_over(stored.to_toml(), options.overrides)
    return load_over(options.config, options.overrides)


def _file_graph(config: RunConfig) -> LabelledGraph | None:
    """The graph of `topology.file`, if the run is on one; without a run that could not begin."""
    file = config.topology.file if config.topology.graph == FILE else None
    try:
        graph = read_graph(Path(file)) if file else None
        check_graph(config, graph)
    except GraphError as error:
        raise as_config_error(error) from error
    return graph
