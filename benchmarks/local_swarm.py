"""What a local swarm reaches: against a centralized baseline, with lost messages, with a hung peer.

    python benchmarks/local_swarm.py seeds     8 peers on digits (the demo) with three seeds
    python benchmarks/local_swarm.py losses    the same with and without 10 % lost messages, in turn
    python benchmarks/local_swarm.py hung      one of 8 peers is stopped for good half way
    python benchmarks/local_swarm.py killed    8 runs (alpha 1), in each another peer is killed

Prints a table and writes JSON beside it (`--output`). Takes one to five minutes each, `killed` ten.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "examples" / "demo.toml"

Event = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["seeds", "losses", "hung", "killed"])
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 if `killed` finds fault")
    arguments = parser.parse_args()
    modes = {"seeds": seeds, "losses": losses, "hung": hung, "killed": killed}
    figures = modes[arguments.what]()
    figures |= {"machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"}
    figures |= {"date": time.strftime("%Y-%m-%d")}
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    if arguments.check and not figures["within_3_points"]:
        raise SystemExit("a survivor is more than 3 points below the baseline")


def seeds() -> Event:
    """Worst peer beside the baselines, for three seeds."""
    rows = []
    for seed in (1, 2, 3):
        report = run("--seed", str(seed))[-1]["report"]
        rows.append({"seed": seed, **accuracies(report), "wall_seconds": report["wall_seconds"]})
    gaps = [row["baseline_small_batch"] - row["worst"] for row in rows]
    return {"rows": rows, "mean_points_below_batch_32": round(100 * statistics.mean(gaps), 2)}


def losses() -> Event:
    """Step rate and accuracy with 10 % known losses, and the lossless run's, in turn."""
    rows, ratios = [], []
    for seed in (1, 2, 3):
        rates = {}
        for drop in (0.0, 0.1):
            events = run("--seed", str(seed), "--set", f"faults.drop={drop}")
            report = events[-1]["report"]
            expected = sum(peer["messages_expected"] for peer in report["peers"])
            missed = sum(peer["messages_missed"] for peer in report["peers"])
            rates[drop] = step_rate(events)
            row = {"seed": seed, "drop": drop, "missed": missed / expected, "of": expected}
            rows.append({**row, "steps_per_s": rates[drop], **accuracies(report)})
        ratios.append(rates[0.1] / rates[0.0])
    return {"rows": rows, "median_rate_ratio": statistics.median(ratios)}


def hung() -> Event:
    """Rates of the living before a peer is stopped and after the third deadline; what they miss."""
    stopped, steps, deadline_s = "peer-5", 800, 1.0
    after_s = 4 * deadline_s  # three deadlines, and the steps between them
    when: list[float] = []

    finished: list[str] = []

    def stop_half_way(event: Event, pids: dict[str, int]) -> None:
        if event["event"] == "step" and event["step"] == steps // 2 and not when:
            os.kill(pids[stopped], signal.SIGSTOP)
            when.append(time.monotonic())
        if event["event"] == "peer_finished":
            finished.append(event["peer"])
            if len(finished) == len(pids) - 1:
                os.kill(pids[stopped], signal.SIGCONT)  # so that the run can end

    settings = [f"transport.deadline_s={deadline_s}", "coordinator.lease_s=600", "faults.drop=0"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    events = run("--steps", str(steps), *flags, on_event=stop_half_way)
    living = [e for e in events if e["event"] == "step" and e["peer"] != stopped]
    before = [e for e in living if steps // 4 < e["step"] and e["at"] < when[0]]
    after = [e for e in living if e["at"] > when[0] + after_s and e["step"] < steps * 0.95]
    neighbours = [set(edge) - {stopped} for edge in topology(events)["edges"] if stopped in edge]
    allowed = {next(iter(peer)): 1 for peer in neighbours}
    among = sum(max(0, e["missed"] - allowed.get(e["peer"], 0)) for e in after)
    return {
        "steps_per_s_before": rate_of(before),
        "steps_per_s_after_third_deadline": rate_of(after),
        "ratio": rate_of(after) / rate_of(before),
        "messages_missed_among_the_living": among,
        "neighbours_of_the_stopped": sorted(allowed),
    }


def killed() -> Event:
    """What a death costs: the coordinator's new epoch, the others' waits, their accuracy.

    `run` ends this with an error if `relayswarm up` does not exit with 0.
    """
    rows = [one_killed(f"peer-{k}") for k in range(8)]
    worst = min(row["worst"] - row["baseline"] for row in rows)
    slowest = max(row["new_epoch_s"] for row in rows)
    return {
        "rows": rows,
        "worst_survivor_points_from_baseline": round(100 * worst, 2),
        "slowest_new_epoch_s": slowest,
        "within_3_points": worst >= -0.03,
    }


def one_killed(victim: str) -> Event:
    """One run in which a peer is killed (SIGKILL) half way."""
    died: list[float] = []

    def kill_half_way(event: Event, pids: dict[str, int]) -> None:
        if event["event"] == "step" and event["step"] == 200 and not died:
            os.kill(pids[victim], signal.SIGKILL)
            died.append(time.monotonic())

    events = run("--set", "data.alpha=1.0", on_event=kill_half_way)
    report = events[-1]["report"]
    epochs = [e for e in events if e["event"] == "topology" and e["reason"] == "unreachable"]
    after = [e for e in events if e["event"] == "step" and died[0] <= e["at"] < died[0] + 5]
    survivors = [peer["id"] for peer in report["peers"]]
    assert victim not in survivors, f"{victim} was killed and yet has finished"
    return {
        "killed": victim,
        "survivors": len(survivors),
        "new_epoch_s": round(epochs[0]["at"] - died[0], 2),
        "longest_wait_s": round(max(e["wait_s"] for e in after), 2),
        "waited_s_in_5_s": round(sum(e["wait_s"] for e in after), 2),
        "timed_out": sum(peer["messages_timed_out"] for peer in report["peers"]),
        **accuracies(report),
    }


def run(
    *flags: str, on_event: Callable[[Event, dict[str, int]], None] | None = None
) -> list[Event]:
    """All events of `relayswarm up` on the demo's config, each with the time it came `at`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "peer.cli", "up", str(DEMO), "--json"]
        command += ["--report", str(Path(folder) / "report"), *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            events = list(_events(process, on_event))
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return events


def _events(
    process: subprocess.Popen[str], on_event: Callable[[Event, dict[str, int]], None] | None
) -> Iterator[Event]:
    pids: dict[str, int] = {}
    assert process.stdout
    for line in process.stdout:
        event = {**json.loads(line), "at": time.monotonic()}
        if event["event"] == "peer_started":
            pids[event["peer"]] = event["pid"]
        if on_event:
            on_event(event, pids)
        yield event


def topology(events: list[Event]) -> Event:
    return next(event for event in events if event["event"] == "topology")


def step_rate(events: list[Event]) -> float:
    """Steps per second of a peer in the middle of a run, start and end left out."""
    steps = [event for event in events if event["event"] == "step"]
    last = max(event["step"] for event in steps)
    return rate_of([e for e in steps if 0.1 * last < e["step"] < 0.9 * last])


def rate_of(steps: list[Event]) -> float:
    """Median over peers of steps per second."""
    by_peer: dict[str, list[float]] = defaultdict(list)
    for event in steps:
        by_peer[event["peer"]].append(event["at"])
    rates = [(len(at) - 1) / (max(at) - min(at)) for at in by_peer.values() if len(at) > 1]
    return round(statistics.median(rates), 2)


def accuracies(report: Event) -> dict[str, float]:
    keys = ("worst", "mean", "consensus_model", "baseline", "baseline_small_batch")
    return {key: round(report[key]["accuracy"], 4) for key in keys}


if __name__ == "__main__":
    main()
