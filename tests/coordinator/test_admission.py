"""Who may join, with which id and shard; a refusal names what differs and what to do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.admission import choose_shard, free_id, refuse, version
from coordinator.members import Join, Member, Refusal, Rules
from coordinator.progress import Progress

RULES = Rules("run", needed=2, shards=4, lease_s=10.0, start_timeout_s=60.0, max_members=3)
ON_THE_LATTICE = replace(RULES, wire_format="lattice")


def member(peer_id: str, incarnation: int = 5, address: str = "", shard: int = 0) -> Member:
    return Member(
        peer_id=peer_id,
        incarnation=incarnation,
        address=address or f"host:{1000 + shard}",
        metrics_address="",
        fingerprint=1,
        shard=shard,
        progress=Progress.begin(0, 0.0),
        expires=10.0,
        last_seen=0.0,
    )


LIVING = [member("peer-0"), member("peer-1", shard=1)]
GOOD = {"incarnation": 5, "address": "host:9", "fingerprint": 1}


@pytest.mark.parametrize(
    ("changes", "refusal", "words"),
    [
        ({"min_version": 2, "max_version": 3}, Refusal.VERSION, ["2..3", "1..1", "same release"]),
        ({"min_version": 0, "max_version": 0}, Refusal.VERSION, ["0..0"]),
        ({"run_id": "other"}, Refusal.RUN, ["'other'", "'run'"]),
        ({"peer_id": "a b"}, Refusal.BAD_ID, ["'a b'", "letters"]),
        ({"peer_id": "x" * 64}, Refusal.BAD_ID, ["63"]),
        ({"incarnation": 0}, Refusal.BAD_ID, ["incarnation = 0"]),
        ({"address": ""}, Refusal.BAD_ADDRESS, ["''", "HOST:PORT"]),
        ({"address": "host"}, Refusal.BAD_ADDRESS, ["'host'"]),
        ({"address": "host:0"}, Refusal.BAD_ADDRESS, ["host:0"]),
        ({"address": "host:65536"}, Refusal.BAD_ADDRESS, ["65536"]),
        ({"address": "0.0.0.0:9"}, Refusal.BAD_ADDRESS, ["wildcard"]),
        ({"address": "[::]:9"}, Refusal.BAD_ADDRESS, ["wildcard"]),
        ({"address": "host:1001"}, Refusal.ADDRESS_TAKEN, ["host:1001", "'peer-1'", "wait"]),
        ({"peer_id": "peer-0", "incarnation": 4}, Refusal.ID_TAKEN, ["'peer-0'", "later"]),
        ({"peer_id": "peer-0", "incarnation": 5}, Refusal.ID_TAKEN, ["host:1000"]),
        ({"peer_id": "done"}, Refusal.FINISHED, ["'done'", "all steps"]),
        ({"dial_only": True}, Refusal.BAD_ADDRESS, ["'host:9'", "only dial out"]),
        ({"fingerprint": 2}, Refusal.FINGERPRINT, ["0x0000000000000002", "0x0000000000000001"]),
    ],
)
def test_a_refusal_says_what_differs(
    changes: dict[str, object], refusal: Refusal, words: list[str]
) -> None:
    refused = refuse(Join(**(GOOD | changes)), RULES, LIVING, {"done"}, fingerprint=1)
    assert refused is not None
    assert refused.refusal is refusal
    assert all(word in refused.text for word in words), refused.text
    assert "\n" not in refused.text


def test_a_peer_that_does_not_know_the_runs_wire_format_is_refused() -> None:
    refused = refuse(Join(**GOOD), ON_THE_LATTICE, LIVING, set(), fingerprint=1)
    assert refused is not None
    assert refused.refusal is Refusal.WIRE_FORMAT
    for word in ("transport.wire_format = 'lattice'", "bfloat16, float16", "same release"):
        assert word in refused.text
    able = Join(**GOOD, formats=frozenset({"lattice"}))
    assert refuse(able, ON_THE_LATTICE, LIVING, set(), fingerprint=1) is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"run_id": "run"},
        {"peer_id": "peer-7"},
        {"peer_id": "peer-0", "incarnation": 6},  # a later life takes the place
        {"peer_id": "peer-0", "address": "host:1000"},  # the same life asks again
        {"max_version": 7},
        {"fingerprint": 0},
        {"fingerprint": 0, "address": ""},  # a candidate need not serve yet
        {"address": "[::1]:9"},
    ],
)
def test_these_may_join(changes: dict[str, object]) -> None:
    assert refuse(Join(**(GOOD | changes)), RULES, LIVING, set(), fingerprint=1) is None


def test_the_first_to_come_sets_the_fingerprint() -> None:
    assert refuse(Join(**(GOOD | {"fingerprint": 77})), RULES, [], set(), fingerprint=0) is None


def test_a_full_swarm_refuses_strangers_but_not_its_own() -> None:
    full = [*LIVING, member("peer-2", shard=2)]
    refused = refuse(Join(**GOOD), RULES, full, set(), fingerprint=1)
    assert refused is not None
    assert refused.refusal is Refusal.FULL
    again = Join(**(GOOD | {"peer_id": "peer-2", "incarnation": 6}))
    assert refuse(again, RULES, full, set(), fingerprint=1) is None


def test_the_address_of_a_life_that_is_about_to_be_replaced_is_still_taken() -> None:
    lives = [member("peer-0", incarnation=1, address="host:7"), member("peer-0", incarnation=2)]
    refused = refuse(Join(**(GOOD | {"address": "host:7"})), RULES, lives, set(), fingerprint=1)
    assert refused is not None
    assert refused.refusal is Refusal.ADDRESS_TAKEN


def test_both_speak_the_version_agreed_on() -> None:
    assert version(Join(**GOOD, min_version=1, max_version=9)) == 1


@pytest.mark.parametrize(
    ("taken", "expected"),
    [(set(), "peer-0"), ({"peer-0", "peer-2"}, "peer-1"), ({"alice"}, "peer-0")],
)
def test_ids_are_the_lowest_free_numbers(taken: set[str], expected: str) -> None:
    assert free_id(taken) == expected


@pytest.mark.parametrize(
    ("peer_id", "held", "shard", "shared"),
    [
        ("peer-2", [], 2, False),  # its own number
        ("peer-2", [2], 0, False),  # taken: the lowest free
        ("peer-9", [0], 1, False),  # no such shard: the lowest free
        ("alice", [0, 1], 2, False),
        ("site-007", [], 0, False),
        ("peer-6", [0, 1, 2, 3], 2, True),  # 6 mod 4
        ("alice", [0, 1, 2, 3], 0, True),
    ],
)
def test_shards(peer_id: str, held: list[int], shard: int, shared: bool) -> None:
    others = [member(f"other-{k}", shard=k) for k in held]
    chosen, note = choose_shard(peer_id, 4, others)
    assert chosen == shard
    assert bool(note) is shared
    if shared:
        assert f"shard {shard} is also that of 'other-{shard}'" in note or f"other-{shard}" in note


@given(st.permutations([f"peer-{k}" for k in range(6)]))
def test_each_peer_gets_its_own_shard_in_whatever_order_they_come(order: list[str]) -> None:
    members: list[Member] = []
    for peer in order:
        shard, _ = choose_shard(peer, 6, members)
        members.append(member(peer, shard=shard))
    assert {m.peer_id: m.shard for m in members} == {f"peer-{k}": k for k in range(6)}


@pytest.mark.parametrize(
    ("weights", "weight", "accepted"),
    [
        (None, 1.0, True),
        (None, 0.0, True),
        (None, 2.0, False),
        ((1e-12, 1e12), 2.0, True),
        ((1e-12, 1e12), 0.0, True),
        ((1e-12, 1e12), -1.0, False),
        ((1e-12, 1e12), float("nan"), False),
        ((1e-12, 1e12), float("inf"), False),
    ],
)
def test_only_a_weight_that_the_run_allows_is_taken(
    weights: tuple[float, float] | None, weight: float, *, accepted: bool
) -> None:
    join = Join(**{**GOOD, "weight": weight})
    refused = refuse(join, replace(RULES, weights=weights), [], [], 0)
    assert (refused is None) == accepted
    if refused:
        assert refused.refusal is Refusal.WEIGHT
        assert f"weight = {weight}" in refused.text


def test_who_has_no_data_holds_no_shard() -> None:
    others = [replace(member("peer-0", shard=0), weight=0.0), member("peer-1", shard=1)]
    assert choose_shard("newcomer", 2, others) == (0, "")
