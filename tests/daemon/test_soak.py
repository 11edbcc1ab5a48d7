"""The soak test: a slice of it runs with the other tests, `make soak` lasts half an hour. A failure
names the seed to replay."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from peer.simulator.run import simulate
from relayswarm import config as run_config
from tests.daemon.soak import HEALING, PACED, SETTINGS, Soak, draw
from tests.daemon.wires import Wires

log = logging.getLogger(__name__)

SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))
SEED = int(os.environ.get("SOAK_SEED", "2"))
HEALS = [flag == "1" for flag in os.environ.get("SOAK_HEAL", "0,1").split(",")]
# A local step and a message take their time, so that the swarm is about as fast however busy the
# machine is.
STEPS_PER_S, PACE_S, DELAY_S = (8.0, 0.08, 0.02) if SECONDS < 60 else (3.75, 0.2, 0.04)
STEPS_AFTER = 140  # so many are left once all faults are over
STEPS = round(STEPS_PER_S * SECONDS) + STEPS_AFTER
POINTS = 0.03


@cache
def undisturbed() -> float:
    """The worst peer's accuracy in a simulated run without faults."""
    settings = (*SETTINGS, "task.name=digits", f"steps={STEPS}", "faults.drop=0")
    config = run_config.parse("", settings)
    peers = simulate(config, None, lambda _: None).peers
    return min(peer.metrics["accuracy"] or 0.0 for peer in peers)


@pytest.mark.timeout(8 * SECONDS + 180)
@pytest.mark.parametrize("heals", HEALS, ids=lambda heals: f"heals={heals:d}")
def test_a_swarm_outlives_whatever_befalls_it(
    daemons: Callable[..., Any],
    install: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    heals: bool,
) -> None:
    task = install(more=PACED.format(pace_s=PACE_S))
    monkeypatch.syspath_prepend(str(task))
    store = ("--store", str(tmp_path / "store.db"))
    settings = (*SETTINGS, "task.name=theirs", f"steps={STEPS}", f"faults.delay_s={DELAY_S}")
    settings += HEALING if heals else ()
    swarm = daemons(*settings, start=False, flags=store)
    wires = Wires(lambda: {p.pid: name for name, p in swarm.peers.items()})
    faults = draw(SEED, SECONDS, every_s=1.5, healing=heals)
    soak = Soak(swarm, wires, task)
    began = time.monotonic()
    try:
        soak.start()
        soak.run(faults, until_step=STEPS - STEPS_AFTER)
        under_fire = soak.steps
        finished = soak.finish()
        accuracies = {peer: event["metrics"]["accuracy"] for peer, event in finished.items()}
        quiet = undisturbed()
        assert min(accuracies.values()) >= quiet - POINTS, f"{accuracies}, without faults {quiet}"
    except BaseException as error:
        told = "\n".join(map(str, soak.done))
        text = f"seed {SEED}: SOAK_SEED={SEED} SOAK_SECONDS={SECONDS:g} SOAK_HEAL={heals:d}\n{told}"
        error.add_note(text)
        raise
    finally:
        wires.close()
    kinds = Counter(fault.kind for fault in soak.done)
    waited_s = sum(event["waited_s"] for event in finished.values())
    grew = max(size.grew for size in soak.sizes.values())
    log.info(
        "seed %d: %d faults, %d skipped, %.0f s, %d steps (%d while there were faults), "
        "waits of %.0f s in all, worst accuracy %.3f, without faults %.3f; %d processes, at most "
        "%.1f MB more after their first minute, %d open files, %d threads; %d trees made without "
        "a coordinator; %s",
        *(SEED, len(soak.done), soak.skipped, time.monotonic() - began, STEPS, under_fire),
        *(waited_s, min(accuracies.values()), quiet),
        *(
            len(soak.sizes),
            grew / 1e6,
            soak.most_open,
            soak.most_threads,
            len(soak.trees),
            dict(kinds),
        ),
    )
