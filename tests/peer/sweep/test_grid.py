"""Which cells a sweep has."""

from __future__ import annotations

import pytest

from peer.sweep.grid import build_cells, parse_axis
from relayswarm.errors import ConfigError


def test_every_combination_with_every_seed(cells) -> None:
    found = cells("algorithm=relaysgd,d2", "data.batch_size=8,16", seeds=2, overrides=("seed=5",))
    assert [cell.combination for cell in found[::2]] == [
        "algorithm=relaysgd, data.batch_size=8",
        "algorithm=relaysgd, data.batch_size=16",
        "algorithm=d2, data.batch_size=8",
        "algorithm=d2, data.batch_size=16",
    ]
    assert [cell.config.seed for cell in found] == [5, 6] * 4
    assert found[3].config.algorithm.name == "relaysgd"
    assert found[3].config.data.batch_size == 16


def test_keys_tell_cells_apart_and_depend_on_nothing_else(cells) -> None:
    axes = ("algorithm=relaysgd,d2", "graph=ring,chain")
    first, second = cells(*axes, seeds=2), cells(*axes, seeds=2)
    assert [cell.key for cell in first] == [cell.key for cell in second]
    assert len({cell.key for cell in first}) == 8
    longer = cells(*axes, seeds=2, overrides=("steps=21",))
    assert not {cell.key for cell in first} & {cell.key for cell in longer}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("algorithm", "not of the form"),
        ("algorithm=", "not of the form"),
        ("colour=red", "not of the form"),
        ("graph=ring,ring", "names a value twice"),
        ("seed=1,2", "seeds are no axis"),
    ],
)
def test_what_is_no_axis_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_axis(text)
    assert caught.value.value == text


def test_an_axis_comes_once() -> None:
    axes = [parse_axis("graph=ring"), parse_axis("topology.graph=chain")]
    with pytest.raises(ConfigError, match="given twice"):
        build_cells(None, [], axes, 1)


def test_a_value_that_the_config_does_not_take_is_named() -> None:
    with pytest.raises(ConfigError, match="steps"):
        build_cells(None, [], [parse_axis("steps=10,0")], 1)
