"""Finding algorithms by name, and their options."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

import peer.config
from peer.algorithms import d2
from peer.algorithms.core import OptionError
from peer.algorithms.sgp import SGP
from relayswarm.config import AlgorithmConfig, RunConfig, parse
from relayswarm.errors import ConfigError


@dataclass(frozen=True)
class Theirs:
    fan_out: int
    pace: float = 1.0

    def __post_init__(self) -> None:
        if self.fan_out < 1:
            raise OptionError("fan_out", self.fan_out, "too small", "set it to 1 or more")


class Offered(SGP):
    Options = Theirs

    def __init__(self, run: object, options: Theirs) -> None:
        super().__init__(run)  # type: ignore[arg-type]
        self.theirs = options


class WithoutDataclass(SGP):
    Options = int


def offer(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """As if an installed package offered that object; a text is what the entry point says."""
    place = value if isinstance(value, str) else "no.matter:What"
    entry = EntryPoint(name=name, value=place, group=peer.config.OFFERS.group)

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == peer.config.OFFERS.group
        return [entry] if name in (None, entry.name) else []

    monkeypatch.setattr("peer.offers.entry_points", entry_points)
    if not isinstance(value, str):
        monkeypatch.setattr(EntryPoint, "load", lambda _: value)


def config(name: str, **options: object) -> RunConfig:
    return RunConfig(algorithm=AlgorithmConfig(name=name, options=options))


def test_an_installed_package_can_offer_an_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "theirs", Offered)
    built = peer.config.build_algorithm(config("theirs", fan_out=3))
    assert isinstance(built, Offered)
    assert built.theirs == Theirs(fan_out=3)


def test_built_in_names_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "d2", Offered)
    assert peer.config.find_algorithm("d2") == (d2.D2, d2.Options)


def test_an_unknown_name_lists_what_others_offer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "theirs", Offered)
    with pytest.raises(ConfigError) as caught:
        peer.config.check_algorithm(config("their"))
    assert caught.value.field == "algorithm.name"
    assert "did you mean 'theirs'? known: adpsgd, " in str(caught.value)


@pytest.mark.parametrize("value", ["no.such.module:X", "peer.algorithms.sgp:NoSuch"])
def test_an_offer_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    offer(monkeypatch, "theirs", value)
    with pytest.raises(ConfigError, match=f"cannot be imported from {value}"):
        peer.config.check_algorithm(config("theirs"))


@pytest.mark.parametrize(
    "value", ["pathlib:Path", "peer.algorithms.gossip:Gossip", WithoutDataclass, 3]
)
def test_an_offer_that_is_no_algorithm_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    offer(monkeypatch, "theirs", value)
    with pytest.raises(ConfigError, match="not an algorithm; derive from"):
        peer.config.check_algorithm(config("theirs"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "algorithm.options.fan_out = None: theirs needs this option"),
        ({"fan_out": 0}, "algorithm.options.fan_out = 0: too small; set it to 1 or more"),
        ({"fan": 1}, "algorithm.fan = 1: theirs has no such option; it knows: fan_out, pace"),
    ],
)
def test_options_from_elsewhere_are_checked_too(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], words: str
) -> None:
    offer(monkeypatch, "theirs", Offered)
    with pytest.raises(ConfigError) as caught:
        peer.config.check_algorithm(config("theirs", **options))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("wire_format", "quantize", "words"),
    [
        ("lattice", "none", 'draws its partners, .*; set algorithm.quantize = "lattice" instead'),
        ("bfloat16", "lattice", "travel on the lattice or exactly; leave it out"),
    ],
)
def test_pairs_have_a_lattice_of_their_own(wire_format: str, quantize: str, words: str) -> None:
    settings = [f"transport.wire_format={wire_format}", f"algorithm.quantize={quantize}"]
    with pytest.raises(ConfigError, match=f"transport.wire_format = '{wire_format}': .*{words}"):
        peer.config.check_algorithm(parse("", ["algorithm.name=swarmsgd", *settings]))


def test_methods_with_steps_have_no_quantizer() -> None:
    with pytest.raises(ConfigError, match=r"quantize = 'lattice': relaysgd has no such"):
        peer.config.check_algorithm(parse("", ["algorithm.quantize=lattice"]))


@pytest.mark.parametrize("name", ["relaysgd", "dpsgd", "swarmsgd", "adpsgd"])
def test_a_distance_that_messages_are_held_to_reaches_the_method(name: str) -> None:
    config = parse("", (f"algorithm.name={name}", "robust.clip=0.5"))
    assert peer.config.build_algorithm(config).run.clip == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["d2", "gradient-tracking", "sgp", "allreduce", "relaysgd-grad"])
def test_a_method_that_holds_no_message_refuses_a_distance(name: str) -> None:
    config = parse("", (f"algorithm.name={name}", "robust.clip=0.5"))
    with pytest.raises(ConfigError, match=rf"robust.clip = 0.5: {name} does not .*relaysgd"):
        peer.config.build_algorithm(config)


def adaptive(*overrides: str) -> RunConfig:
    return parse("", ["algorithm.name=dpsgd-qgm", *overrides])


def test_with_adam_the_moments_take_the_place_of_quasi_global_momentum() -> None:
    """The method's own b is 0: its register is then what the moments are of."""
    assert peer.config.algorithm_options(adaptive()) == {}
    assert peer.config.algorithm_options(adaptive("optimizer.name=sgd")) == {}
    assert peer.config.algorithm_options(adaptive("optimizer.name=adam")) == {"momentum": 0.0}
    other = parse("", ["algorithm.name=dpsgd", "optimizer.name=adam"])
    assert peer.config.algorithm_options(other) == {}


@pytest.mark.parametrize(
    ("overrides", "field", "words"),
    [
        (("optimizer.name=adamw",), "optimizer.name", "no form for it"),
        (
            ("optimizer.name=adam", "algorithm.momentum=0.9"),
            "algorithm.momentum",
            "are optimizer.betas",
        ),
        (
            ("optimizer.name=adam", "algorithm.options.momentum=0.0"),
            "algorithm.momentum",
            "are optimizer.betas",
        ),
    ],
)
def test_what_makes_no_sense_with_an_optimizer_is_refused(
    overrides: tuple[str, ...], field: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        peer.config.check_algorithm(adaptive(*overrides))
    assert caught.value.field == field
