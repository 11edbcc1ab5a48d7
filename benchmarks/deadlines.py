"""What waiting costs, and what the rules for it buy: simulated swarms of RelaySGD in virtual time.

    python benchmarks/deadlines.py            all tables, as Markdown (half a minute)
    python benchmarks/deadlines.py --output deadlines.json

Three faults, each on a binary tree of 15 peers that train 1 s a step (virtual):

    dead leaf     from step 20 on nothing comes from or to a leaf, and nobody is told
    slow hub      an inner peer takes ten times as long as the others
    silent loss   one message in ten is lost without a word

and three sets of rules: waiting for exactly this step's message, late ones dropped; the product's
rules (R1 to R9), but an edge is given up after one time-out (R6 after three); the product's rules.
Deadlines are 30 s, 6 s, or adapted. Everything is seeded: the tables are the same on any machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import peer.algorithms.slots
import peer.config
from peer.algorithms import ALGORITHMS
from peer.algorithms.relaysgd import Options, RelaySGD
from peer.faults import FaultPlan
from peer.simulator.run import simulate
from relayswarm import config as run_config
from relayswarm.config import RunConfig

PEERS, STEPS, DIES_AT = 15, 200, 20
TREE = ("task.name=quadratics", "topology.graph=binary-tree", "optimizer.lr=0.05")
LEAF, ABOVE_LEAF, HUB = "peer-14", "peer-6", "peer-1"

Row = dict[str, Any]


class ExactStep(RelaySGD):
    """What one would write first: only the message of this very step counts, nobody jumps."""

    uses_late = False

    def _jump_ahead(self) -> None:
        pass


@contextmanager
def exact_step() -> Iterator[None]:
    with mock.patch.dict(ALGORITHMS, {"relaysgd": (ExactStep, Options)}):  # type: ignore[arg-type]
        yield


@contextmanager
def one_time_out() -> Iterator[None]:
    with mock.patch.object(peer.algorithms.slots, "TIME_OUTS_BEFORE_SILENT", 1):
        yield


@contextmanager
def as_they_are() -> Iterator[None]:
    yield


RULES: Mapping[str, Callable[[], Any]] = {
    "exactly this step": exact_step,
    "given up after one": one_time_out,
    "R1 to R9": as_they_are,
}
DEADLINES: Mapping[str, tuple[str, ...]] = {
    "30 s": (),
    "6 s": ("transport.deadline_s=6",),
    "adapted": ("transport.adapt_deadline=true",),
}
STEPS_DEAD = f"[{', '.join(map(str, range(DIES_AT, STEPS)))}]"
FAULTS: Mapping[str, str] = {
    "none": "",
    "dead leaf": f"""
faults.loss = "silent"
faults.edge = [
  {{sender = "{LEAF}", receiver = "{ABOVE_LEAF}", drop = 1.0, steps = {STEPS_DEAD}}},
  {{sender = "{ABOVE_LEAF}", receiver = "{LEAF}", drop = 1.0, steps = {STEPS_DEAD}}},
]""",
    "slow hub": f"faults.slow = {{{HUB} = 10.0}}",
    "silent loss": 'faults.loss = "silent"\nfaults.drop = 0.1',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    rows = [run("none", "R1 to R9", "30 s")]
    rows += [run(f, r, d) for f in FAULTS if f != "none" for r in RULES for d in DEADLINES]
    print(table(rows))
    if arguments.output:
        text = json.dumps({"rows": rows, "date": time.strftime("%Y-%m-%d")}, indent=2)
        arguments.output.write_text(text + "\n")


def run(fault: str, rules: str, deadline: str) -> Row:
    """One swarm: how fast the living step, what they miss of each other, where they end."""
    settings = [*TREE, f"peers={PEERS}", f"steps={STEPS}", *DEADLINES[deadline]]
    config = run_config.parse(FAULTS[fault], settings)
    events: list[dict[str, Any]] = []
    with RULES[rules]():
        outcome = simulate(config, None, events.append)
    dead = {LEAF} if fault == "dead leaf" else set()
    steps = [e for e in events if e["event"] == "step" and e["peer"] not in dead]
    living = [peer for peer in outcome.peers if peer.id not in dead]
    simulation = outcome.simulation or {}
    known = sum(sent_in_vain(config, peer.id) for peer in living)
    missed = sum(e["missed"] for e in steps) - known
    expected = sum(peer.messages_expected for peer in living) - known
    errors = [peer.metrics["suboptimality"] or 0.0 for peer in living]
    return {
        "fault": fault,
        "rules": rules,
        "deadline": deadline,
        "steps_per_s": round(STEPS / simulation["virtual_seconds"], 3),
        "lost_between_living": round(max(missed, 0) / expected, 4),
        "time_outs": sum(peer.messages_timed_out for peer in living),
        "waited_s": round(sum(peer.waited_s for peer in living)),
        "error": statistics.mean(errors),
    }


def sent_in_vain(config: RunConfig, receiver: str) -> int:
    """Messages to a peer that the plan loses: no rule can save them."""
    plan = FaultPlan(config.faults, config.seed)
    around = neighbours(receiver)
    return sum(plan.drops(step, 0, 0, k, receiver) for step in range(STEPS) for k in around)


def neighbours(peer_id: str) -> list[str]:
    """In the binary tree whose node i has the children 2 i + 1 and 2 i + 2."""
    i = int(peer_id.removeprefix("peer-"))
    near = [(i - 1) // 2 if i else -1, 2 * i + 1, 2 * i + 2]
    return [f"peer-{k}" for k in near if 0 <= k < PEERS]


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| fault | rules | deadline | steps/s | lost between the living | time-outs | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['fault']} | {r['rules']} | {r['deadline']} | {r['steps_per_s']:.2f} "
        f"| {r['lost_between_living']:.1%} | {r['time_outs']} | {r['error']:.2g} |"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
