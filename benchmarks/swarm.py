"""SwarmSGD among real daemons: what a straggler costs the others, and what they learn beside one.

    python benchmarks/swarm.py stragglers   what one of 8 peers, 10 times slower, costs the others
                                            where local steps are a sleep; relaysgd beside swarmsgd
    python benchmarks/swarm.py accuracy     8 peers on digits (even shards, H = 3, 300 local steps),
                                            with and without one of them 10 times slower

Prints and writes JSON (`--output`). Takes some minutes each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Event = dict[str, Any]

SLOW, FACTOR = "peer-7", 10.0
SLEEP_S = 0.1
LOCAL_STEPS = 3

TASK = f"""
import time
from peer.tasks.quadratics import Quadratics

class Sleeping(Quadratics):
    name = "sleeping"

    def gradients(self, module, batch):
        time.sleep({SLEEP_S})
        return super().gradients(module, batch)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["stragglers", "accuracy"])
    parser.add_argument("--seeds", type=int, default=5, help="of `accuracy`")
    parser.add_argument("--rounds", type=int, default=2, help="of `stragglers`")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    given = parser.parse_args()
    figures = stragglers(given.rounds) if given.what == "stragglers" else accuracy(given.seeds)
    figures |= {"machine": f"{os.cpu_count()} cores", "date": time.strftime("%Y-%m-%d")}
    text = json.dumps(figures, indent=2)
    if given.output:
        given.output.write_text(text + "\n")
    print(text)


def stragglers(rounds: int) -> Event:
    """Median step rate of the seven others, with the slow peer over without it, in turn."""
    rates: dict[str, list[float]] = {}
    with sleeping_task() as folder:
        for _ in range(rounds):
            for method, steps in (("swarmsgd", 40), ("relaysgd", 20)):
                for slow in (False, True):
                    events = run(
                        *("--task", "sleeping", "--algorithm", method, "--steps", str(steps)),
                        *("--set", f"algorithm.local_steps={LOCAL_STEPS}"),
                        *slowness(slow),
                        path=folder,
                        until_others_end=True,
                    )
                    key = f"{method}{', one slow' if slow else ''}"
                    rates.setdefault(key, []).append(rate_of_others(events))
    figures: Event = {"steps_per_s": rates}
    for method in ("swarmsgd", "relaysgd"):
        drops = [
            100 * (1 - with_it / without)
            for with_it, without in zip(rates[f"{method}, one slow"], rates[method], strict=True)
        ]
        figures[f"{method}_rate_drop_percent"] = [round(drop, 1) for drop in drops]
    return figures


def accuracy(seeds: int) -> Event:
    """Accuracy of all peers beside the same training in one place."""
    rows = []
    for seed in range(1, seeds + 1):
        for slow in (False, True):
            report = run(
                *("--task", "digits", "--algorithm", "swarmsgd", "--graph", "complete"),
                *("--steps", str(300 // LOCAL_STEPS), "--seed", str(seed)),
                *("--set", f"algorithm.local_steps={LOCAL_STEPS}"),
                *slowness(slow),
            )[-1]["report"]
            keys = ("worst", "mean", "baseline", "baseline_small_batch")
            values = {key: round(100 * report[key]["accuracy"], 2) for key in keys}
            rows.append({"seed": seed, "slow": slow, **values})
    figures: Event = {"rows": rows}
    for slow in (False, True):
        for base in ("baseline", "baseline_small_batch"):
            below = [row[base] - row["mean"] for row in rows if row["slow"] is slow]
            name = f"mean_points_below_{base}{'_one_slow' if slow else ''}"
            figures[name] = round(statistics.mean(below), 2)
    return figures


def slowness(slow: bool) -> tuple[str, ...]:
    return ("--set", f"faults.slow={{{SLOW} = {FACTOR}}}") if slow else ()


@contextmanager
def sleeping_task() -> Iterator[Path]:
    """A folder with a package that offers the task `sleeping`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metadata = folder / "sleeping-1.0.dist-info"
        metadata.mkdir()
        (folder / "sleeping.py").write_text(TASK)
        (metadata / "METADATA").write_text("Name: sleeping\nVersion: 1.0\n")
        entry = "[relayswarm.tasks]\nsleeping = sleeping:Sleeping\n"
        (metadata / "entry_points.txt").write_text(entry)
        yield folder


def run(*flags: str, path: Path | None = None, until_others_end: bool = False) -> list[Event]:
    """All events of `relayswarm up` with eight peers, each with the time it came `at`."""
    environment: Mapping[str, str] = dict(os.environ)
    if path is not None:
        both = [str(path), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, both))}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "peer.cli", "up", "--json", "--peers", "8"]
        command += ["--report", str(Path(folder) / "report"), *flags]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            events = list(_events(process, until_others_end=until_others_end))
        if process.returncode and not until_others_end:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return events


def _events(process: subprocess.Popen[str], *, until_others_end: bool) -> Iterator[Event]:
    """With `until_others_end`, what comes until all but the slow peer have finished."""
    finished = set()
    assert process.stdout
    for line in process.stdout:
        event = {**json.loads(line), "at": time.monotonic()}
        yield event
        if event["event"] == "peer_finished":
            finished.add(event["peer"])
            if until_others_end and len(finished - {SLOW}) == 7:
                process.send_signal(signal.SIGINT)
                until_others_end = False


def rate_of_others(events: list[Event]) -> float:
    """Median steps per second of all but the slow peer, the first two steps left out."""
    rates: list[float] = []
    for peer in {event["peer"] for event in events if event["event"] == "step"} - {SLOW}:
        at = [
            e["at"] for e in events if e["event"] == "step" and e["peer"] == peer and e["step"] > 1
        ]
        rates.append((len(at) - 1) / (at[-1] - at[0]))
    return round(statistics.median(rates), 3)


if __name__ == "__main__":
    main()
