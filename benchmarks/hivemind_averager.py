"""How fast two peers on this machine average with hivemind, to stand beside `transport.py`.

    PYTHON benchmarks/hivemind_averager.py [MB] [ROUNDS]

PYTHON is that of an environment with hivemind, which the project does not need and its other
benchmarks do not touch: `python -m venv FOLDER && FOLDER/bin/pip install hivemind`. Two averagers
with float32 tensors reduce them to their mean; with two peers that sends a model each way, half of
it as it is and half of it averaged. Timed is the all-reduce alone, without the search for a
partner. Prints GB of model a second and direction, the median and all; the first round is not
counted.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from typing import Any

import hivemind
import torch
from hivemind.averaging.averager import DecentralizedAverager

PATIENCE_S = 60.0
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]


def measure(megabytes: int, rounds: int) -> list[float]:
    """Seconds that each all-reduce took, at one of the peers."""
    context = multiprocessing.get_context("fork")  # averagers fork, too, and `timed` goes with them
    seconds, addresses = context.Queue(), context.Queue()
    first = context.Process(target=average, args=(megabytes, rounds, [], seconds, addresses))
    first.start()
    other = context.Process(target=average, args=(megabytes, rounds, addresses.get(), None, None))
    other.start()
    taken = [seconds.get(timeout=PATIENCE_S) for _ in range(rounds)]
    for process in (first, other):
        process.join(PATIENCE_S)
    return taken[1:]


def average(megabytes: int, rounds: int, known: list[str], seconds: Any, addresses: Any) -> None:
    torch.set_num_threads(1)
    if seconds is not None:
        DecentralizedAverager._aggregate_with_group = timed(seconds)
    dht = hivemind.DHT(initial_peers=known, host_maddrs=LOOPBACK, start=True)
    if addresses is not None:
        addresses.put([str(address) for address in dht.get_visible_maddrs()])
    averager = DecentralizedAverager(
        averaged_tensors=[torch.randn(megabytes * 250_000)],
        dht=dht,
        prefix="benchmark",
        target_group_size=2,
        min_group_size=2,
        min_matchmaking_time=2.0,
        start=True,
    )
    for _ in range(rounds):
        assert averager.step(timeout=PATIENCE_S) is not None, "no group was found"
    averager.shutdown()
    dht.shutdown()


def timed(seconds: Any) -> Any:
    """hivemind's all-reduce, which tells how long it took."""
    reduce = DecentralizedAverager._aggregate_with_group

    async def aggregate(self: Any, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = await reduce(self, *arguments, **named)
        seconds.put(time.perf_counter() - began)
        return result

    return aggregate


def main() -> None:
    megabytes, rounds = (*map(int, sys.argv[1:]), *(100, 5)[len(sys.argv) - 1 :])
    rates = [megabytes / 1000 / one for one in measure(megabytes, rounds)]
    print(f"{statistics.median(rates):.3f} GB/s", [round(rate, 3) for rate in rates])


if __name__ == "__main__":
    main()
