"""Scripts: reading them, one peer's turns, and whole swarms that follow one."""

from __future__ import annotations

import random
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.graphs import build_graph
from peer.algorithms.core import LIVE, OptionError, Run
from peer.algorithms.script import Interaction, Script, Turn, parse_script
from peer.algorithms.swarmsgd import COPY
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World

ROWS = (("a", "b", 2), ("b", "c", 1), ("c", "a", 3), ("a", "b", 1))


def test_rows_are_read_with_one_local_step_if_none_is_said() -> None:
    assert parse_script([["a", "b"], ("b", "a", 3)]) == (
        Interaction("a", "b", 1),
        Interaction("b", "a", 3),
    )


@pytest.mark.parametrize(
    "row", [("a", "a", 1), ("a", "b", 0), ("a", "b", 1.5), ("a",), ("a", 2, 1), ("a", "b", 1, 1)]
)
def test_anything_else_is_refused_by_its_place(row: tuple[object, ...]) -> None:
    with pytest.raises(OptionError, match=r"script\[1\] = .* local steps"):
        parse_script([("a", "b", 1), row])


def test_a_peer_goes_through_its_own_turns() -> None:
    script = Script(parse_script(ROWS), "a")
    assert script.next == script.next_call == Turn(0, True, "b", 2)
    assert (script.mine, script.is_of("b")) == (True, False)
    script.done(1.0)
    assert script.next == Turn(2, False, "c", 3)
    assert script.next_call == Turn(3, True, "b", 1)
    assert (script.mine, script.is_of("c"), script.is_of("b")) == (False, True, False)
    script.done(2.0)
    script.done(3.0)
    assert script.next is None
    assert (script.mine, script.is_of("b")) == (False, False)
    script.done(4.0)  # nothing is left to be done with


def test_a_turn_ends_when_all_before_it_may_have_timed_out() -> None:
    script = Script(parse_script(ROWS), "c")
    assert script.ends_at(0.0, 10.0) == 30.0  # its first is the second of all
    script.done(5.0)
    assert script.ends_at(0.0, 10.0) == 25.0
    assert script.ends_at(8.0, 10.0) == 28.0  # trained at 8


def test_turns_with_peers_that_left_are_taken_away() -> None:
    script = Script(parse_script(ROWS), "a")
    script.keep({"a", "c"}, 7.0)
    assert script.next == Turn(2, False, "c", 3)
    assert script.next_call is None


# --- swarms ---------------------------------------------------------------------------------------


def by_the_script(
    name: str, blocking: bool, rows: list[tuple[int, int, int]], x: list[F], targets: list[F]
) -> list[F]:
    """The papers' rules, one interaction after the other; local steps go half way each."""
    x, x_hat = list(x), list(x)

    def moved(start: F, i: int, steps: int) -> F:
        return targets[i] + (start - targets[i]) / 2**steps

    for i, j, steps in rows:
        if blocking:
            x[i] = x[j] = (moved(x[i], i, steps) + moved(x[j], j, steps)) / 2
            continue
        start = x[i] if name == "adpsgd" else x_hat[i]
        delta = moved(start, i, steps) - start
        x[j] = (x[i] + x[j]) / 2
        x[i] = x_hat[i] = x[j] + delta
    return x


@st.composite
def scripts(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]]]:
    n = draw(st.integers(2, 5))
    pairs = st.permutations(range(n)).map(lambda order: tuple(order[:2]))
    rows = draw(st.lists(st.tuples(pairs, st.integers(1, 3)), min_size=1, max_size=12))
    return n, [(*pair, steps) for pair, steps in rows]


FORMS = st.sampled_from([("swarmsgd", False), ("swarmsgd", True), ("adpsgd", False)])


@settings(max_examples=60)
@given(FORMS, scripts(), st.integers(0, 2**32))
def test_swarms_follow_their_script_however_long_anything_takes(
    form: tuple[str, bool], script: tuple[int, list[tuple[int, int, int]]], seed: int
) -> None:
    (name, blocking), (n, rows) = form, script
    draw = random.Random(seed)
    starts, targets = [[F(draw.randrange(-9, 10)) for _ in range(n)] for _ in range(2)]
    options: dict[str, object] = {"script": [(f"peer-{i}", f"peer-{j}", h) for i, j, h in rows]}
    swarm = ExactSwarm(
        name,
        views(graph=build_graph("complete", n)),
        Run(1, deadline_s=1e6),
        Problem([(x,) for x in starts], [(x,) for x in targets]),
        options=options | ({"blocking": True} if blocking else {}),
        duration_s=lambda i, step: draw.choice([0.1, 1.0, 5.0]),  # noqa: ARG005
        world=World(SeededLink(seed, delay_s=(0.001, 3.0))),
    ).run()
    register = LIVE if blocking else COPY.name
    models = [body.vectors[register][0] for body in swarm.bodies]
    assert models == by_the_script(name, blocking, rows, starts, targets)


@settings(max_examples=20)
@given(FORMS, scripts(), st.integers(0, 2**32), st.booleans())
def test_a_script_hangs_nobody_whatever_is_lost(
    form: tuple[str, bool], script: tuple[int, list[tuple[int, int, int]]], seed: int, known: bool
) -> None:
    (name, blocking), (n, rows) = form, script
    link = SeededLink(seed, delay_s=(0.001, 3.0), drop=0.3, known=known)
    options: dict[str, object] = {"script": [(f"peer-{i}", f"peer-{j}", h) for i, j, h in rows]}
    ExactSwarm(
        name,
        views(graph=build_graph("complete", n)),
        Run(1, deadline_s=2.0),
        Problem([(F(1),)] * n, [(F(2),)] * n),
        options=options | ({"blocking": True} if blocking else {}),
        world=World(link),
    ).run()


@pytest.mark.parametrize("blocking", [False, True])
def test_turns_with_a_dead_peer_are_given_up(blocking: bool) -> None:
    """Peer 2 is dead; peers 0 and 1 wait for it as initiator and as partner, then finish."""
    link = LosingLink(lambda sender, to, _: "peer-2" in (sender, to), known=False)
    script = [("peer-0", "peer-2"), ("peer-2", "peer-1"), ("peer-0", "peer-1")]
    swarm = ExactSwarm(
        "swarmsgd",
        views(graph=build_graph("complete", 3)),
        Run(1, deadline_s=2.0),
        Problem([(F(0),)] * 3, [(F(1),)] * 3),
        options={"script": script, "blocking": blocking},
        world=World(link),
    ).run()
    assert swarm.world.now < 60
