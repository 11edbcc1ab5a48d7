"""What methods send, and how deep trees are: the tables of docs/choosing.md.

    python benchmarks/choosing.py           writes them into the page, in seconds
    python benchmarks/choosing.py --check   says whether they are as the page has them

`costs` are simulated runs of 16 peers on the default graph: 40 steps of quadratics, as nothing that
is counted depends on what is learnt. `trees` are those that 16 peers would get. Both are the same
on every machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from peer.localswarm.session import lay_out_run
from peer.simulator.run import simulate
from relayswarm.config import parse

PAGE = Path(__file__).resolve().parents[1] / "docs" / "choosing.md"
PEERS, STEPS = 16, 40
ALGORITHMS = ("relaysgd", "allreduce", "dpsgd", "d2", "gradient-tracking", "sgp", "swarmsgd")
GRAPHS = (
    "random-regular",
    "double-binary-trees",
    "binary-tree",
    "torus",
    "complete",
    "ring",
    "chain",
)
_TABLE = re.compile(
    r"(<!-- table: (\w+) by benchmarks/choosing.py -->\n).*?(<!-- end -->)", re.DOTALL
)


def costs() -> Iterator[Sequence[str]]:
    """A row for each method."""
    yield (
        "`algorithm.name`",
        "models sent a step, mean over peers",
        "most by one peer",
        "message rounds a step",
    )
    for name in ALGORITHMS:
        settings = (f"algorithm.name={name}", "task.name=quadratics", f"steps={STEPS}")
        cost = simulate(parse(f"peers = {PEERS}", settings), None, lambda _: None).simulation
        assert cost is not None
        sent = cost["models_sent_per_step"]
        rounds = cost["message_rounds_per_step"]
        yield f"`{name}`", _two(sent["mean"]), _two(sent["largest"]), _two(rounds)


def trees() -> Iterator[Sequence[str]]:
    """A row for each graph. Of two trees the deeper one, and neighbours on both together."""
    yield "`topology.graph`", "hops between the furthest peers", "most neighbours", "rate factor"
    for graph in GRAPHS:
        tree = "double-binary-trees" if graph == "double-binary-trees" else "spanning-tree"
        settings = (f"topology.graph={graph}", f"topology.tree={tree}")
        found = lay_out_run(parse(f"peers = {PEERS}", settings)).topology
        sides = zip(*(one.neighbours for one in found.trees), strict=True)
        near = [set[int]().union(*parts) for parts in sides]
        factor = float(found.trees[0].lr_factor())
        yield f"`{graph}`", str(found.diameter), str(max(map(len, near))), _two(factor)


def _two(value: float) -> str:
    return f"{value:.2g}"


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(text: str) -> str:
    """The page with its tables made anew."""
    made = {"costs": costs, "trees": trees}
    return _TABLE.sub(
        lambda found: f"{found[1]}\n{table(list(made[found[2]]()))}\n{found[3]}", text
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing, say what is stale")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before)
    if check:
        print(f"{PAGE.name} is {'fresh' if after == before else 'stale'}")
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    print(after.partition("<!-- table: costs")[2].partition("<!-- end -->")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
