"""What a site's audit costs a step: whole swarms of daemons, with and without it by turns.

    python benchmarks/audit.py                    all cases, a few minutes
    python benchmarks/audit.py digits 25M-1s      these
    python benchmarks/audit.py --digest sha256    with another digest of payloads

Real peers with `--site` and a coordinator on this machine, relaysgd on a chain, float32. Within one
run blocks of steps with the audit and without it take turns, in all peers alike, so that other load
on the machine meets both; without it a payload takes the way it takes in a peer without `--site`.
Each block of steps with the audit is held against the mean of those before and after it; a figure
is the median of what that comes to over blocks and peers, with an interval in which the median
lies at 95 %. Twice: by the time a step takes, which other load on the machine stretches at random,
and by the processor time of the peer's process in it. `of a step` holds the latter against what a
step takes at least: its computation, emulated or not, and the processor time of all else.

Computation is emulated but for `digits`: the gradient takes a sleep, as of a device that computes
by itself. A case is called ELEMENTS-SLEEP.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from os import environ, getloadavg
from pathlib import Path
from typing import Any

from benchmarks.step_overhead import offer_task
from peer.localswarm.swarm import CONFIG, LOGS, STATE, LocalCommands, LocalSwarm
from peer.manifest import hardware
from peer.views import peer_ids
from relayswarm.config import RunConfig, parse

LIMIT = 0.03
WARM_UP = 1  # steps of each block that are not counted: messages of the one before may be under way
TIMES = "times.json"


@dataclass(frozen=True)
class Case:
    """A swarm. `sleep_s` None: digits, and its own computation."""

    name: str
    peers: int
    elements: int
    sleep_s: float | None
    block: int  # steps
    blocks: int

    def config(self) -> RunConfig:
        settings: dict[str, Any] = {
            "peers": self.peers,
            "steps": self.block * self.blocks,
            "task.name": "digits",
            "topology.graph": "chain",
            "transport.deadline_s": 60.0,
        }
        if self.sleep_s is not None:
            emulated = {"elements": self.elements, "sleep_s": self.sleep_s}
            settings |= {f"task.options.{key}": value for key, value in emulated.items()}
            settings |= {"task.name": "emulated", "optimizer.momentum": 0.0}
        return parse("", [f"{key}={json.dumps(value)}" for key, value in settings.items()])


CASES = (
    Case("digits", 4, 21_546, None, 10, 301),
    Case("20k-20ms", 4, 21_546, 0.02, 10, 151),
    Case("250k-100ms", 4, 250_000, 0.1, 5, 101),
    Case("25M-0ms", 2, 25_000_000, 0.0, 4, 41),
    Case("25M-200ms", 2, 25_000_000, 0.2, 4, 31),
    Case("25M-1s", 2, 25_000_000, 1.0, 4, 25),
)


class AuditedCommands(LocalCommands):
    """Peers are processes of this file, which turn their audit on and off."""

    def __init__(self, directory: Path, case: Case, digest: str) -> None:
        super().__init__(directory, "cpu", None, case.config())
        self._site = directory / "site.toml"
        self._site.write_text(f'[readers]\nallow = "anyone"\n[audit]\ndigest = "{digest}"\n')
        self._block = case.block

    def peer(self, peer: str, coordinator: str) -> Sequence[str]:
        arguments = super().peer(peer, coordinator)
        given = arguments[arguments.index("peer") :]
        as_peer = (sys.executable, "-m", "benchmarks.audit", "--as-peer", str(self._block))
        return [*as_peer, *given, "--site", str(self._site)]


def live_as_peer(block: int, arguments: list[str]) -> None:
    """`relayswarm peer`, whose audit is on in every other block of steps; it leaves in its folder
    of state when it had done each step, and with how much processor time."""
    from peer import cli
    from peer.daemon import Daemon
    from peer.transport.account import Account

    opens, averages = Account.__init__, Daemon.averaged
    times: list[tuple[float, float]] = []

    def open_by_turns(account: Any, ledger: Any, parcel: Any) -> None:
        opens(account, ledger if is_audited(parcel.step, block) else None, parcel)

    def note(daemon: Any, effect: Any) -> None:
        averages(daemon, effect)
        times.append((time.perf_counter(), time.process_time()))

    Account.__init__, Daemon.averaged = open_by_turns, note  # type: ignore[method-assign]
    try:
        cli.main(arguments)
    finally:
        folder = Path(arguments[arguments.index("--state-dir") + 1])
        (folder / TIMES).write_text(json.dumps(times))


def is_audited(step: int, block: int) -> bool:
    """The first block and the last are not."""
    return step // block % 2 == 1


def run(case: Case, digest: str) -> tuple[list[list[tuple[float, float]]], int]:
    """When each peer had done its steps; and how many records all have written."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / LOGS).mkdir()
        (directory / CONFIG).write_text(case.config().to_toml())
        peers = peer_ids(case.peers)
        with LocalSwarm(AuditedCommands(directory, case, digest), peers, directory / LOGS) as swarm:
            swarm.start()
            for _ in swarm.events():
                pass
        folders = [directory / STATE / peer for peer in peers]
        records = sum((folder / "audit.jsonl").read_bytes().count(b"\n") for folder in folders)
        return [json.loads((folder / TIMES).read_text()) for folder in folders], records


def seconds_of_blocks(times: Sequence[Sequence[float]], column: int, block: int) -> list[float]:
    """Seconds of a step, by block; the first block, in which peers meet, is one of them."""
    marks = [row[column] for row in times]
    starts = range(WARM_UP, len(marks) - block + WARM_UP + 1, block)
    length = block - 1 - WARM_UP
    return [(marks[start + length] - marks[start]) / length for start in starts]


def pairs(seconds: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Of each block with the audit and those around it; the first ones are of the beginning."""
    for k in range(3, len(seconds) - 1, 2):
        yield seconds[k], (seconds[k - 1] + seconds[k + 1]) / 2


def median_within(values: Iterable[float]) -> tuple[float, float, float]:
    """The median between the order statistics that hold it at 95 %, for independent values."""
    ordered = sorted(values)
    n, away = len(ordered), 0.98 * math.sqrt(len(ordered))
    low, high = max(int(n / 2 - away), 0), min(math.ceil(n / 2 + away), n - 1)
    return ordered[low], statistics.median(ordered), ordered[high]


def measure(case: Case, digest: str) -> dict[str, Any]:
    times, records = run(case, digest)
    steps, work = (
        [pair for one in times for pair in pairs(seconds_of_blocks(one, column, case.block))]
        for column in (0, 1)
    )
    without = statistics.median(off for _, off in work)
    more = median_within(on - off for on, off in work)
    return {
        "records": records,
        "step_s": statistics.median(off for _, off in steps),
        "step_more": median_within(on / off - 1 for on, off in steps),
        "processor_s": without,
        "processor_more_s": more,
        "of_a_step": more[1] / (without + (case.sleep_s or 0.0)),
    }


def main() -> int:
    if sys.argv[1:2] == ["--as-peer"]:
        live_as_peer(int(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(c.name for c in CASES))
    parser.add_argument("--digest", choices=("blake3", "sha256"), default="blake3")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if case.name in (arguments.cases or [c.name for c in CASES])]
    print(f"{date.today()}, load before: {getloadavg()[0]:.1f}; {hardware()}\n")
    print(
        "| case | peers | elements | step, ms | audit adds | processor, ms | audit adds, ms "
        "| of a step |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        environ["PYTHONPATH"] = offer_task(Path(directory))
        for case in chosen:
            found = measure(case, arguments.digest)
            low, middle, high = found["step_more"]
            least, more, most = (1e3 * seconds for seconds in found["processor_more_s"])
            part = found["of_a_step"]
            mark = "**" if part <= LIMIT else ""
            print(
                f"| {case.name} | {case.peers} | {case.elements:,} | {1e3 * found['step_s']:,.1f} "
                f"| {middle:.1%} ({low:.1%} to {high:.1%}) | {1e3 * found['processor_s']:,.1f} "
                f"| {more:.2f} ({least:.2f} to {most:.2f}) | {mark}{part:.1%}{mark} |",
                flush=True,
            )
            print(f"{case.name}: {found['records']} records", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
