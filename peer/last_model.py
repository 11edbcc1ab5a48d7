"""The last model of a run at one peer: written, described beside it, and judged.

What belongs here: what is made of a model after the last step, and what others measured of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from coordinator.member_metrics import Evaluation
from peer.algorithms.core import PeerId, peer_order
from peer.daemon import Daemon
from peer.hand_over import MODEL, HandOver, digest_of, forget, write
from peer.manifest import versions
from peer.model_files import AVERAGE, config_sha256, fingerprint_text, model_metadata
from peer.outcome import Metrics
from peer.parts import Parts
from peer.swarm_metrics import as_event
from peer.training.checkpoint import export_model
from peer.transport.coordinator_client import CoordinatorClient
from relayswarm import config as run_config
from relayswarm import logs
from relayswarm.errors import ConfigError, QuorumError
from relayswarm.logs import finite

log = logging.getLogger("relayswarm.peer")

ROOM_S = 60.0  # so long may the last model wait for room on the disk, or for a file to open
RETRY_S = 0.5
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 0.8  # between two questions what the other sites measured


class LastModel:
    """What a peer makes of its model once nothing changes it any more."""

    def __init__(self, parts: Parts, ever: Collection[PeerId]) -> None:
        """`ever`: the members of all views that this peer has had, and may still get."""
        self._parts, self._daemon, self._ever = parts, parts.daemon, ever
        self._directory = parts.options.state_dir
        run = run_config.parse(parts.candidate.run_config)  # the coordinator's, and no site's
        self._run_config = run.model_dump(mode="json")

    def write(self, metrics: Metrics, is_interrupted: Callable[[], bool]) -> str | None:
        """Write the model, measured so, beside the checkpoints; returns its path, if there is one.
        While there is no room for it, this peer waits, and serves. Raises ConfigError after
        `ROOM_S`, or once it is interrupted."""
        began, told = time.monotonic(), False
        while True:
            try:
                return self._export(metrics)
            except ConfigError as error:
                if is_interrupted() or time.monotonic() - began > ROOM_S:
                    raise
                if not told:
                    text = f"{error}; trying again for {ROOM_S:.0f} s"
                    logs.event(log, logging.ERROR, "model_not_written", text)
                told = True
            time.sleep(RETRY_S)

    def _export(self, metrics: Metrics) -> str | None:
        if self._directory is None:
            return None
        path = self._directory / MODEL
        daemon = self._daemon
        common, view = daemon.common, daemon.common or daemon.view
        metadata = model_metadata(
            self._run_config,
            AVERAGE if common else daemon.peer,
            daemon.steps_done,
            participants=list(view.members) if view else [daemon.peer],
            metrics={} if common else metrics,  # a common model is the same file at every peer
            fingerprint=fingerprint_text(self._parts.trainer.fingerprint),
        )
        forget(self._directory)
        export_model(path, self._parts.trainer.flat, metadata)
        return str(path)

    def hand_over(
        self,
        metrics: Mapping[str, float],
        others: Mapping[PeerId, Evaluation] = MappingProxyType({}),
    ) -> None:
        """Say beside the model what it is, and what the `others` measured of it."""
        parts, daemon, directory = self._parts, self._daemon, self._directory
        if directory is None or not parts.trainer.config.stop.common_model:
            return
        members = list(daemon.common.members) if daemon.common else [daemon.peer]
        weights = daemon.common.weights if daemon.common else {}
        text = parts.candidate.run_config
        known, own = daemon.swarm.known, daemon.swarm.own
        sites = {**others, daemon.peer: own} if own else others
        what = HandOver(
            run_id=parts.trainer.config.run_id,
            config_sha256=config_sha256(self._run_config),
            peer=daemon.peer,
            shard=parts.trainer.site.shard,
            step=daemon.steps_done,
            model_sha256=digest_of(directory / MODEL),
            is_common=daemon.common is not None,
            participants=members,
            weights={peer: float(weights.get(peer, 1)) for peer in members},
            missing=self._missing(),
            metrics={name: finite(value) for name, value in metrics.items()},
            swarm_metrics=as_event(known) if known else None,
            best_swarm_metrics=as_event(daemon.swarm.best) if daemon.swarm.best else None,
            versions=versions(),
            run_config=text,
            sites={peer: sites[peer].as_json() for peer in sorted(sites, key=peer_order)},
        )
        write(directory, what)

    def judge(self) -> None:
        """Say whose models are in the common one. Raises QuorumError if they are too few."""
        stop = self._parts.trainer.config.stop
        if not stop.common_model:
            return
        common, missing = self._daemon.common, self._missing()
        without = f"; without {', '.join(missing)}" if missing else ""
        if common is None:
            unsure = self._daemon.unsure
            what = "the other models did not come, and the model here is this peer's own"
            if unsure:
                what = f"no word came whether all others have the mean of {unsure.n} that is here"
            raise QuorumError(
                f"stop.common_model = True: {what}{without}; fetch that of another peer with "
                "`relayswarm pull`"
            )
        weights = common.weights.values()
        n = sum(weight > 0 for weight in weights) if weights else common.n
        text = f"the model is the mean of {n} peers'{without}"
        level = logging.WARNING if missing else logging.INFO
        logs.event(log, level, "handed_over", text, peers=n, missing=missing)
        if n < stop.min_peers:
            raise QuorumError(
                f"stop.min_peers = {stop.min_peers}: only {n} peers' models are in the "
                f"common one{without}; it is kept, but start another run for one of more"
            )

    def _missing(self) -> list[PeerId]:
        common = self._daemon.common
        present = common.members if common else {self._daemon.peer}
        return sorted(set(self._ever).difference(present), key=peer_order)


def measured_elsewhere(
    client: CoordinatorClient, daemon: Daemon, until: float
) -> Mapping[PeerId, Evaluation]:
    """What each other participant measured of the common model, as the coordinator has heard.
    It is asked once at least, and again `until` it has heard of all that it knows, or is away."""
    common, own = daemon.common, daemon.swarm.own
    others = set(common.members) - {daemon.peer} if common else set()
    found: dict[PeerId, Evaluation] = {}
    pause_s = FIRST_PAUSE_S
    while others and own:
        told = client.evaluations()
        if told is None:
            break
        known = {peer: told[peer] for peer in others if peer in told}
        found |= {p: one for p, one in known.items() if one and one.step == own.step}
        if found.keys() >= known.keys() or time.monotonic() > until:
            break
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_PAUSE_S)
    return found
