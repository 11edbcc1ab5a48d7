"""The soak test (`make soak`); a failure names the seed to replay. Not collected by `make test`."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peer.simulator.learning import simulate
from relayswarm import config as run_config
from tests.daemon.soak import SETTINGS, Soak, draw
from tests.daemon.wires import Wires

log = logging.getLogger(__name__)

SECONDS = float(os.environ.get("RELAYSWARM_SOAK_SECONDS", "12"))
SEED = int(os.environ.get("RELAYSWARM_SOAK_SEED", "1"))
STEPS_PER_S = 10.0  # so fast a swarm is at most: each message takes its time
POINTS = 0.03


@pytest.mark.timeout(8 * SECONDS + 180)
def test_a_swarm_outlives_whatever_befalls_it(daemons: Callable[..., Any], tmp_path: Path) -> None:
    steps = round(STEPS_PER_S * SECONDS) + 60
    store = ("--store", str(tmp_path / "store.db"))
    swarm = daemons(*SETTINGS, f"steps={steps}", start=False, flags=store)
    wires = Wires(lambda: {p.pid: name for name, p in swarm.peers.items()})
    faults = draw(SEED, SECONDS, every_s=1.5)
    soak = Soak(swarm, wires)
    began = time.monotonic()
    try:
        soak.start()
        soak.run(faults, until_step=steps - 60)
        finished = soak.finish()
        accuracies = {peer: event["metrics"]["accuracy"] for peer, event in finished.items()}
        without = run_config.parse("", [*SETTINGS, f"steps={steps}", "faults.drop=0"])
        quiet = min(
            peer.metrics["accuracy"] or 0.0
            for peer in simulate(without, None, lambda _: None).peers
        )
        assert min(accuracies.values()) >= quiet - POINTS, f"{accuracies}, without faults {quiet}"
    except BaseException as error:
        told = "\n".join(map(str, soak.done))
        text = (
            f"seed {SEED}: RELAYSWARM_SOAK_SEED={SEED} RELAYSWARM_SOAK_SECONDS={SECONDS:g}\n{told}"
        )
        error.add_note(text)
        raise
    finally:
        wires.close()
    kinds = Counter(fault.kind for fault in soak.done)
    waited_s = sum(event["waited_s"] for event in finished.values())
    log.info(
        "seed %d: %d faults, %d skipped, %.0f s, %d steps, waits of %.0f s in all, "
        "worst accuracy %.3f, without faults %.3f; %s",
        *(SEED, len(soak.done), soak.skipped, time.monotonic() - began, steps, waited_s),
        *(min(accuracies.values()), quiet, dict(kinds)),
    )
