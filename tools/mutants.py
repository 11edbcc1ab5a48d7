"""Breaks one mechanism after the other, and sees that a test fails for each: `make mutants`.

`tests/mutants.toml` lists what is promised, the lines that keep the promise, other lines without
it, and the test that must fail with them. All is done in copies of the tree, in which each such
test has passed before. Ends with 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.toml"
TEST_TIMEOUT_S = 60  # of one test with a mutant: some leave a swarm waiting for ever
PASSED, FAILED = 0, 1  # exit codes of pytest; others mean that it could not run the test
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "reports", "*.egg-info", "node_modules")


class MutantError(Exception):
    """The list does not fit the code; says which entry, and why."""


@dataclass(frozen=True)
class Mutant:
    """One mechanism, and its absence."""

    point: str  # what is promised; several mutants may stand for it
    mechanism: str  # what keeps the promise, in words
    file: str
    old: str
    new: str
    test: str  # pytest's node id

    def mutated(self, text: str) -> str:
        """The text of its file without the mechanism. Raises MutantError."""
        found = text.count(self.old)
        if found != 1:
            raise MutantError(f"{self.mechanism!r}: {found} places in {self.file}, not one")
        if self.old.split() == self.new.split():
            raise MutantError(f"{self.mechanism!r}: nothing is changed")
        mutated = text.replace(self.old, self.new)
        try:
            ast.parse(mutated)
        except SyntaxError as error:
            raise MutantError(f"{self.mechanism!r}: no Python any more: {error}") from error
        return mutated

    @property
    def function(self) -> str:
        """The function or class around the place, with the classes around it; "" at the top."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        first = text[: text.index(self.old)].count("\n") + 1
        lines = self.old.splitlines()
        blank = next((k for k, line in enumerate(lines) if line.strip()), 0)
        return ".".join(_around(_parsed(text), first + blank))


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    verdict: str  # killed, survived, or what else pytest's exit code says
    seconds: float
    output: str


def load(path: Path = LIST) -> dict[str, list[Mutant]]:
    """The mutants of each part of the list, in its order."""
    parts = tomllib.loads(path.read_text(encoding="utf-8"))
    return {part: [Mutant(**entry) for entry in entries] for part, entries in parts.items()}


def table(part: str) -> str:
    """What is promised, by which lines, and the test that fails without them, as Markdown."""
    rows, before = ["| | mechanism | where | test that fails without it |", "| --- " * 4 + "|"], ""
    for mutant in load()[part]:
        point = mutant.point if mutant.point != before else ""
        before = mutant.point
        function = f", `{mutant.function}`" if mutant.function else ""
        file, _, test = mutant.test.partition("::")
        proof = f"`{file.removeprefix('tests/')}`: `{test.replace('::', ' ')}`"
        rows.append(f"| {point} | {mutant.mechanism} | `{mutant.file}`{function} | {proof} |")
    return "\n".join(rows)


def check(mutants: Iterable[Mutant], root: Path = ROOT) -> None:
    """Raise MutantError for one whose lines or whose test are not there."""
    for mutant in mutants:
        mutant.mutated((root / mutant.file).read_text(encoding="utf-8"))
        file, *names = mutant.test.partition("[")[0].split("::")
        inside: ast.AST = _parsed((root / file).read_text(encoding="utf-8"))
        for name in names:
            found = [n for n in ast.iter_child_nodes(inside) if getattr(n, "name", "") == name]
            if not found:
                raise MutantError(f"{mutant.mechanism!r}: no test {mutant.test}")
            inside = found[0]


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _around(node: ast.AST, line: int) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min((d.lineno for d in child.decorator_list), default=child.lineno)
            if first <= line <= (child.end_lineno or 0):
                yield child.name
                yield from _around(child, line)


# --- running ----------------------------------------------------------------------------------


def run_tests(tree: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """Pytest's exit code and output, in that tree."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "CI": "1"}
    done = subprocess.run(
        [*command, *options, *tests], cwd=tree, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def attempt(tree: Path, mutant: Mutant) -> Outcome:
    """Run the test of a mutant with it in place; the tree is as before afterwards."""
    path, began = tree / mutant.file, time.monotonic()
    sound = path.read_text(encoding="utf-8")
    path.write_text(mutant.mutated(sound), encoding="utf-8")
    try:
        code, output = run_tests(tree, [mutant.test], "-x", "-o", f"timeout={TEST_TIMEOUT_S}")
    finally:
        path.write_text(sound, encoding="utf-8")
    verdict = {PASSED: "survived", FAILED: "killed"}.get(code, f"not run: pytest ended with {code}")
    return Outcome(mutant, verdict, round(time.monotonic() - began, 1), output)


def run(mutants: Sequence[Mutant], workers: int) -> Iterator[Outcome]:
    """The outcome of each. Raises MutantError if a test fails without any mutant."""
    with tempfile.TemporaryDirectory(prefix="relayswarm-mutants-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            tree = Path(folder) / str(number)
            shutil.copytree(ROOT, tree, ignore=NOT_COPIED)
            trees.put(tree)
        code, output = run_tests(tree, sorted({mutant.test for mutant in mutants}))
        if code != PASSED:
            raise MutantError(f"tests fail without any mutant:\n{output[-4000:]}")

        def next_one(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                return attempt(tree, mutant)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(next_one, mutants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="of which this is in the mechanism or test")
    parser.add_argument("--workers", type=int, default=2, help="so many at a time")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file, too")
    parser.add_argument("--show", action="store_true", help="what pytest said of each")
    options = parser.parse_args()
    every = [mutant for part in load().values() for mutant in part]
    chosen = [m for m in every if options.only in m.mechanism + m.test + m.point]
    try:
        check(chosen)
        outcomes = []
        for outcome in run(chosen, options.workers):
            outcomes.append(outcome)
            line = f"{outcome.verdict:8} {outcome.seconds:6.1f} s  {outcome.mutant.mechanism}"
            print(line, flush=True)
            if options.show or outcome.verdict != "killed":
                print(f"    {outcome.mutant.test}\n{outcome.output[-2000:]}", flush=True)
    except MutantError as error:
        sys.exit(f"mutants: {error}")
    if options.json:
        options.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    killed = sum(outcome.verdict == "killed" for outcome in outcomes)
    print(f"mutants: {killed} of {len(outcomes)} killed")
    sys.exit(killed < len(outcomes))


if __name__ == "__main__":
    main()
