"""The list of mutants fits the code and its tests; `make mutants` runs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools.mutants import ROOT, Mutant, MutantError, attempt, check, load

FILE = '''
class Bound:
    """Holds a number down."""

    @staticmethod
    def held(x):
        return min(x, 5)
'''
TEST = """
from bound import Bound

def test_it_holds():
    assert Bound.held(7) == 5
"""
MUTANT = Mutant("numbers are bounded", "by 5", "bound.py", "min(x, 5)", "x", "test_bound.py")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "bound.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "test_bound.py").write_text(TEST, encoding="utf-8")
    return tmp_path


def test_all_places_and_tests_of_the_list_are_there() -> None:
    mutants = [mutant for part in load().values() for mutant in part]
    check(mutants)
    assert all("::" in mutant.test for mutant in mutants)
    assert len(set(mutants)) == len(mutants)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"old": "max(x, 5)"}, "0 places in bound.py"),
        ({"old": "x"}, "2 places in bound.py"),
        ({"new": "x)"}, "no Python"),
        ({"new": "min(x,  5)"}, "nothing is changed"),
        ({"test": "test_bound.py::test_it_does_not"}, "no test"),
    ],
)
def test_an_entry_that_does_not_fit_is_named(
    tree: Path, change: dict[str, str], problem: str
) -> None:
    with pytest.raises(MutantError, match=f"'by 5': {problem}"):
        check([replace(MUTANT, **change)], tree)


@pytest.mark.parametrize(
    ("new", "verdict"),
    [("x", "killed"), ("min(5, x)", "survived"), ("min(x, 5) if x", "no Python any more")],
)
def test_a_mutant_is_killed_by_a_test_that_fails(tree: Path, new: str, verdict: str) -> None:
    mutant = replace(MUTANT, new=new)
    if verdict.startswith("no"):
        with pytest.raises(MutantError, match=verdict):
            attempt(tree, mutant)
    else:
        assert attempt(tree, mutant).verdict == verdict
    assert (tree / "bound.py").read_text(encoding="utf-8") == FILE


def test_a_test_that_cannot_be_run_kills_nothing(tree: Path) -> None:
    assert attempt(tree, replace(MUTANT, test="test_other.py")).verdict.startswith("not run")


def test_functions_are_named_with_the_classes_around_them() -> None:
    mutant = load()["faults"][0]
    assert (ROOT / mutant.file).exists()
    assert mutant.function == "RelaySGD._mean"
