"""A whole learning run in one process, with an object of every kind per peer or all peers in one
table, whichever serves it best.

Either way the peers are the daemons' own parts (see `learning`).
"""

from __future__ import annotations

from pathlib import Path

from peer.faults import check_peers
from peer.outcome import RunOutcome
from peer.simulator.learning import Simulation
from peer.simulator.memory import memory_of_a_swarm
from peer.simulator.stacked_run import StackedSimulation, is_better_recorded, is_wanted
from peer.simulator.stacked_training import Stacking
from peer.simulator.telling import Listener
from peer.views import peer_ids
from relayswarm.config import RunConfig


def simulate(
    config: RunConfig,
    data_dir: Path | None,
    progress: Listener,
    *,
    mean_every: int = 0,
    stacked: Stacking = "off",
    device: str = "cpu",
) -> RunOutcome:
    """Run the swarm of `config` to its end; `progress` gets the events that processes announce.

    Every `mean_every` steps (0: never) it also gets `mean_model`, the metrics of the mean of the
    models, once all peers have done the step. `stacked` (on, off, auto) says whether the peers
    train in one call, on `device`: much faster, but equal only up to rounding. Raises ConfigError
    and DataError as the daemons do.
    """
    check_peers(config, peer_ids(config.peers))
    with memory_of_a_swarm():
        if is_wanted(config, stacked) or is_better_recorded(config):
            together = StackedSimulation(config, data_dir, progress, mean_every, stacked, device)
            return together.run()
        return Simulation(config, data_dir, progress, mean_every).run()
