"""What a numerical trace refuses: each with the array or setting, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peer.cli import main
from peer.simulator.trace import run_trace
from relayswarm.errors import ConfigError

N, D, T = 4, 3, 5
CHAIN = [(0, 1), (1, 2), (2, 3)]
RING = [*CHAIN, (0, 3)]


def problem(**changes: Any) -> dict[str, Any]:
    """A problem that fits relaysgd; None takes an array away."""
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {
        "A": rng.normal(size=(N, D, D)),
        "b": rng.normal(size=(N, D)),
        "x0": np.zeros(D),
        "edges": CHAIN,
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., ConfigError]:
    """The error that a trace of these arrays ends with."""

    def run(method: str = "relaysgd", *settings: str, **changes: Any) -> ConfigError:
        np.savez(tmp_path / "problem.npz", **problem(**changes))
        with pytest.raises(ConfigError) as caught:
            run_trace(tmp_path / "problem.npz", method, T, 0.01, settings, tmp_path / "trace.npz")
        assert not (tmp_path / "trace.npz").exists()
        return caught.value

    return run


BAD_ARRAYS = {
    "A is missing": ("A", {"A": None}, "missing"),
    "A is not square": ("A", {"A": np.zeros((N, D, D + 1))}, "not a square matrix"),
    "A is flat": ("A", {"A": np.zeros((N, D))}, "not that"),
    "A is nothing": ("A", {"A": np.zeros((0, D, D))}, "not a square matrix"),
    "A is not finite": ("A", {"A": np.full((N, D, D), np.nan)}, "not finite"),
    "A is text": ("A", {"A": np.full((N, D, D), "a")}, "not that"),
    "b is too short": ("b", {"b": np.zeros((N - 1, D))}, "A asks for"),
    "x0 is for each peer": ("x0", {"x0": np.zeros((N, D))}, "not that"),
    "x0 is too long": ("x0", {"x0": np.zeros(D + 1)}, "A asks for"),
    "edges are missing": ("edges", {"edges": None}, "missing"),
    "edges are triples": ("edges", {"edges": [(0, 1, 2)]}, "not pairs"),
    "edges are real": ("edges", {"edges": [(0.0, 1.0)]}, "not pairs"),
    "an edge leads nowhere": ("edges", {"edges": [(0, 1), (1, 2), (2, 4)]}, "no peer 4"),
    "an edge is negative": ("edges", {"edges": [(0, 1), (1, 2), (2, -1)]}, "no peer -1"),
    "an edge leads to itself": ("edges", {"edges": [(0, 1), (1, 2), (3, 3)]}, "itself"),
    "an edge is given twice": ("edges", {"edges": [*CHAIN, (1, 0)]}, "twice"),
    "a peer is left out": ("edges", {"edges": [(0, 1), (1, 2), (0, 2)]}, "disconnected"),
    "the graph has a cycle": ("edges", {"edges": RING}, "3 edges"),
    "one tree of two": ("edges_b", {"edges_a": CHAIN}, "missing"),
    "the second tree has a cycle": ("edges_b", {"edges_a": CHAIN, "edges_b": RING}, "3 edges"),
    "drops of other peers": ("drops", {"drops": np.zeros((T, 3, 3), bool)}, "table of losses"),
    "drops that are no bools": ("drops", {"drops": np.full((T, N, N), 2)}, "table of losses"),
    "too few drops": ("drops", {"drops": np.zeros((T - 1, N, N), bool)}, "5 steps"),
    "too few rates": ("lr", {"lr": np.ones(T - 1)}, "5 steps"),
    "a rate below zero": ("lr", {"lr": -np.ones(T)}, "negative"),
}


@pytest.mark.parametrize(("name", "changes", "problem"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused_by_name(refusal, name, changes, problem: str) -> None:
    error = refusal(**changes)
    assert error.field == f"problem.{name}"
    assert problem in str(error)


PAIRS = np.array([(0, 1), (2, 1)])
BAD_PAIRS = {
    "missing": ("interactions", {}, "missing"),
    "empty": ("interactions", {"interactions": np.zeros((0, 2), int)}, "missing"),
    "not along an edge": ("interactions", {"interactions": [(0, 2)]}, "not an edge"),
    "with itself": ("interactions", {"interactions": [(1, 1)], "edges": None}, "not an edge"),
    "with a stranger": ("interactions", {"interactions": [(0, 7)], "edges": None}, "not an edge"),
    "no local steps": (
        "interaction_steps",
        {"interactions": PAIRS, "interaction_steps": [1, 0]},
        "not numbers",
    ),
    "too few local steps": (
        "interaction_steps",
        {"interactions": PAIRS, "interaction_steps": [1]},
        "2 interactions",
    ),
    "too few rates": ("lr", {"interactions": PAIRS, "lr": np.ones(3)}, "2 interactions"),
    "with losses": (
        "drops",
        {"interactions": PAIRS, "drops": np.ones((T, N, N), bool)},
        "no steps",
    ),
}


@pytest.mark.parametrize("method", ["swarmsgd", "adpsgd"])
@pytest.mark.parametrize(("name", "changes", "problem"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_interactions_that_do_not_fit(refusal, method: str, name, changes, problem: str) -> None:
    error = refusal(method, **changes)
    assert error.field == f"problem.{name}"
    assert problem in str(error)


BAD_SETTINGS = {
    "weights": (
        "adpsgd",
        ("algorithm.neighbour_weights={peer-1 = 2}",),
        "algorithm.neighbour_weights",
        "says who calls whom",
    ),
    "time budget": (
        "swarmsgd",
        ("algorithm.time_budget_s=1",),
        "algorithm.time_budget_s",
        "a trace has no time",
    ),
    "unknown method": ("relaysdg", (), "algorithm.name", "did you mean 'relaysgd'"),
    "sgp of five": ("sgp", (), "algorithm.name", "not a power of two"),
    "foreign option": ("dpsgd", ("algorithm.overlap=true",), "algorithm.overlap", "no such option"),
    "foreign value": ("relaysgd", ("algorithm.fallback=x",), "algorithm.fallback", "'previous'"),
    "not of a trace": ("relaysgd", ("faults.drop=0.1",), "--set", "no difference"),
    "uniform on a chain": (
        "dpsgd",
        ("algorithm.weights=uniform",),
        "algorithm.weights",
        "degrees differ",
    ),
    "momentum of another optimizer": (
        "dpsgd-qgm",
        ("optimizer.name=adamw",),
        "optimizer.name",
        "no form for it",
    ),
    "wrong rounds": (
        "sgp",
        ("algorithm.options.rounds_per_step=3",),
        "algorithm.options.rounds_per_step",
        "1 or 2",
    ),
}


@pytest.mark.parametrize(
    ("method", "settings", "field", "problem"), BAD_SETTINGS.values(), ids=BAD_SETTINGS
)
def test_settings_that_do_not_fit(refusal, method, settings, field: str, problem: str) -> None:
    five = {"A": np.zeros((5, D, D)), "b": np.zeros((5, D)), "edges": [*CHAIN, (3, 4)]}
    error = refusal(method, *settings, **five)
    assert error.field == field
    assert problem in str(error)


def test_files_that_are_none(tmp_path: Path) -> None:
    text, out = tmp_path / "text.npz", tmp_path / "trace.npz"
    text.write_text("no archive")
    for path in (text, tmp_path / "absent.npz"):
        with pytest.raises(ConfigError, match=r"--problem = .*cannot be read"):
            run_trace(path, "relaysgd", T, 0.01, (), out)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, A=np.array([{}]))
    with pytest.raises(ConfigError, match="cannot be read"):
        run_trace(pickled, "relaysgd", T, 0.01, (), out)
    fine = tmp_path / "fine.npz"
    np.savez(fine, **problem())
    with pytest.raises(ConfigError, match=r"--trace = .*cannot be written"):
        run_trace(fine, "relaysgd", T, 0.01, (), tmp_path / "nowhere" / "trace.npz")
    with pytest.raises(ConfigError, match="--steps = None: missing"):
        run_trace(fine, "relaysgd", None, 0.01, (), out)


# --- the command ----------------------------------------------------------------------------------


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_command_writes_the_trace_and_says_where(tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "problem.npz", **problem())
    out = tmp_path / "trace.npz"
    given = ("--algorithm", "relaysgd", "--problem", tmp_path / "problem.npz", "--steps", "5")
    assert command(*given, "--lr", "0.01", "--trace", out, "--set", "algorithm.overlap=true") == 0
    assert capsys.readouterr().out.strip() == str(out)
    with np.load(out) as file:
        assert file["x"].shape == (T + 1, N, D)
        assert file["counts"].tolist()[0] == [1] * N


def test_the_command_ends_with_two_and_one_line(tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "problem.npz", **problem(edges=RING))
    given = ("--algorithm", "relaysgd", "--problem", tmp_path / "problem.npz", "--steps", "5")
    for extra, said in [
        (("--trace", tmp_path / "trace.npz"), "problem.edges"),
        (("--trace", tmp_path / "trace.npz", "--peers", "3"), "--peers"),
        ((), "--trace"),
    ]:
        assert command(*given, *extra) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert said in lines[0]


def test_the_rate_may_be_said_without_a_trace_too(capsys) -> None:
    assert command("--lr", "-1") == 2
    assert "optimizer.lr = -1" in capsys.readouterr().err
