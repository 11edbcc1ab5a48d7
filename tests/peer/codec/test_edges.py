"""Keys and forecasts: what both ends of an edge remember, and what they forget."""

import dataclasses
from typing import Any

import pytest
import torch

from peer.algorithms.core import Epoch, Head, Kind
from peer.codec import Format
from peer.codec.edges import (
    TRAVELLING,
    Forecast,
    Keys,
    Lattice,
    LatticeSetting,
    dither_seed,
    payload_bytes,
)
from peer.codec.lattice import FULL_PRECISION

SETTING = LatticeSetting()
HEAD = Head("a", 1, Epoch(1, 1, 9), step=3, kind=Kind.RELAY, count=2)


def with_(**changes: Any) -> Head:
    return dataclasses.replace(HEAD, **changes)


def forecast(setting: LatticeSetting | None = SETTING) -> Forecast:
    made = Forecast(setting, seed=5, to="b")
    made.answered(HEAD, [4.0])
    return made


# --- forecasts ------------------------------------------------------------------------------------


def test_goes_in_full_precision_until_a_distance_is_known() -> None:
    made = Forecast(SETTING, seed=5, to="b")
    assert made.coding(HEAD, 1) is None
    made.answered(HEAD, [])  # the receiver had no key
    assert made.coding(HEAD, 1) is None
    made.answered(HEAD, [4.0])
    coding = made.coding(HEAD, 1)
    assert coding is not None
    assert (coding.bits, coding.expected) == (8, (4.0,))


def test_distances_are_scaled_by_counts_and_kept_apart_by_edge_and_section() -> None:
    made = forecast()
    larger = made.coding(with_(step=4, count=6), 1)
    assert larger is not None
    assert larger.expected == (12.0,)
    assert made.coding(with_(tree=1), 1) is None
    assert made.coding(with_(kind=Kind.GOSSIP), 1) is None
    assert made.coding(HEAD, 2) is None
    made.answered(with_(kind=Kind.GOSSIP), [1.0, 8.0])
    two = made.coding(with_(kind=Kind.GOSSIP, count=7), 2)
    assert two is not None
    assert two.expected == (1.0, 8.0), "a gossip message is one model, whatever its count says"


def test_an_epoch_begins_anew() -> None:
    made = forecast()
    later = with_(epoch=Epoch(1, 2, 9))
    assert made.coding(later, 1) is None
    made.answered(later, [4.0])
    assert made.coding(later, 1) is not None


@pytest.mark.parametrize(("wanted", "bits"), [(None, 8), (16, 16), (8, 8)])
def test_writes_with_the_bits_wanted(wanted: int | None, bits: int) -> None:
    coding = forecast().coding(HEAD, 1, wanted)
    assert coding is not None
    assert coding.bits == bits


@pytest.mark.parametrize("wanted", [FULL_PRECISION, 7, 12, 32, 1 << 31])
def test_any_other_wish_is_for_full_precision(wanted: int) -> None:
    assert forecast().coding(HEAD, 1, wanted) is None


@pytest.mark.parametrize("kind", sorted(set(Kind) - TRAVELLING, key=str))
def test_other_kinds_never_go_on_the_lattice(kind: Kind) -> None:
    made = forecast()
    made.answered(with_(kind=kind), [1.0])
    assert made.coding(with_(kind=kind), 1) is None


def test_without_a_setting_nothing_goes_on_the_lattice() -> None:
    assert forecast(None).coding(HEAD, 1) is None


# --- seeds ----------------------------------------------------------------------------------------


def test_each_message_has_a_seed_of_its_own() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"step": 4},
        {"round": 1},
        {"tree": 1},
        {"kind": Kind.GOSSIP},
        {"sender": "c"},
        {"exchange": 2},
    ]
    seeds = [dither_seed(5, with_(**change), "b") for change in changes]
    seeds += [dither_seed(6, HEAD, "b"), dither_seed(5, HEAD, "d")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert dither_seed(5, with_(incarnation=2, count=9), "b") == seeds[0]


# --- keys -----------------------------------------------------------------------------------------


def test_the_key_is_the_last_message_times_the_ratio_of_counts() -> None:
    keys = Keys(SETTING)
    assert keys.find(HEAD, 1) is None
    vector = torch.ones(3)
    keys.remember(HEAD, (vector,))
    key = keys.find(with_(step=4, count=6), 1)
    assert key is not None
    assert key.vectors[0] is vector
    assert key.scale == 3.0
    assert keys.find(with_(tree=1), 1) is None
    assert keys.find(with_(sender="c"), 1) is None
    assert keys.find(HEAD, 2) is None


def test_keys_of_another_epoch_are_of_no_use_and_let_go() -> None:
    keys = Keys(SETTING)
    keys.remember(HEAD, (torch.ones(3),))
    keys.remember(with_(tree=1), (torch.ones(3),))
    later = with_(epoch=Epoch(1, 2, 9))
    assert keys.find(later, 1) is None
    keys.remember(later, (torch.zeros(3),))
    assert keys.find(later, 1) is not None
    assert keys.find(with_(tree=1), 1) is None


def test_knows_a_message_that_has_come() -> None:
    keys = Keys(SETTING)
    assert not keys.has(HEAD)
    keys.remember(HEAD, (torch.ones(3),))
    assert keys.has(HEAD)
    assert not keys.has(with_(step=4))


def test_other_kinds_make_no_keys() -> None:
    keys = Keys(SETTING)
    offer = with_(kind=Kind.OFFER)
    keys.remember(offer, (torch.ones(3),))
    assert keys.find(offer, 1) is None


@pytest.mark.parametrize("rotated", [False, True])
def test_both_ends_together(rotated: bool) -> None:
    """Two sections, a sum that grows: what the sender expects is what the receiver sees."""
    setting = LatticeSetting(is_rotated=rotated)
    keys, sender = Keys(setting), Forecast(setting, seed=5, to="b")
    random = torch.Generator().manual_seed(2)
    model = torch.randn(2, 1000, generator=random)
    for step in range(6):
        head = with_(step=step, count=step + 1)
        model += 0.01 * torch.randn(2, 1000, generator=random)
        sums = (step + 1) * model
        coding, key = sender.coding(head, 2), keys.find(head, 2)
        assert (coding is None) == (step < 2), "the first makes a key, the second a distance"
        vectors = tuple(sums)
        distances = key.distances(vectors) if key else ()
        if coding and key:
            vectors = tuple(torch.empty(2, 1000))
            decoders = key.decoders(coding)
            for k, (decoder, out) in enumerate(zip(decoders, vectors, strict=True)):
                assert decoder.decode(coding.encoder(k).encode(sums[k]), 0, out)
            assert torch.allclose(torch.stack(vectors), sums, rtol=0, atol=0.01 * (step + 1))
            exact = distances
            distances = tuple(decoder.distance for decoder in decoders)
            assert distances == pytest.approx(exact, rel=0.1)
        sender.answered(head, distances)
        keys.remember(head, vectors)


def test_lengths_of_payloads() -> None:
    assert payload_bytes(Format.FLOAT32, 2, 5) == 40
    assert payload_bytes(Lattice(8, 1), 2, 5) == 2 * (12 + 5)
    assert payload_bytes(Lattice(16, 1), 1, 70_000) == 2 * 12 + 2 * 70_000
