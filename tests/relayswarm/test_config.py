"""The run config: read, overridden, refused by name, and written so that it reads back equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayswarm.config import RunConfig, load, parse, validate
from relayswarm.errors import ConfigError, ExitCode

EVERYTHING = """
schema_version = 1
run_id = "night-3"
peers = 4
steps = 7
seed = 11
deterministic = true

[task]
name = "quadratics"
options = { dimension = 5, convention = "exact", weights = [1, 2.5] }

[data]
shards = 3
alpha = 0.1
min_samples = 2
batch_size = 8

[algorithm]
name = "dpsgd"
local_steps = 2
weights = "lazy"
options = { fan_out = 2 }

[optimizer]
name = "adam"
lr = 0.003
betas = [0.8, 0.99]
schedule = "cosine"
warmup_steps = 3
relay_lr_correction = true

[topology]
graph = "complete"
tree = "double-binary-trees"

[evaluation]
every = 5

[transport]
wire_format = "bfloat16"
deadline_s = 2.5
linger_s = 0

[coordinator]
lease_s = 4.0
start_timeout_s = 60.0

[checkpoint]
every = 0

[faults]
drop = 0.1
loss = "silent"
slow = { peer-1 = 2.0 }

[[faults.edge]]
sender = "peer-0"
receiver = "peer-1"
steps = [1, 2]
drop = 1.0

[[faults.crash]]
peer = "peer-2"
at_step = 3
"""

TOML_VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def refusal(text: str = "", *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides)
    assert caught.value.exit_code is ExitCode.USAGE
    return caught.value


# --- reading --------------------------------------------------------------------------------------


def test_an_empty_config_is_all_defaults() -> None:
    assert parse("") == load(None) == RunConfig()


def test_a_warm_up_is_said_once() -> None:
    error = refusal("[optimizer]\nwarmup_steps = 5\nwarmup = 0.1")
    assert "warmup_steps and warmup say the same: leave one of the two out" in str(error)
    assert parse("[optimizer]\nwarmup_steps = 5\nwarmup = 0").optimizer.warmup_steps == 5


def test_every_section_is_read() -> None:
    config = parse(EVERYTHING)
    assert (config.run_id, config.peers, config.shards, config.seed) == ("night-3", 4, 3, 11)
    assert config.task.options == {"dimension": 5, "convention": "exact", "weights": [1, 2.5]}
    assert config.algorithm.options == {"fan_out": 2}
    assert config.optimizer.betas == (0.8, 0.99)
    assert config.topology.tree == "double-binary-trees"
    assert config.transport.linger_s == 0
    assert config.faults.slow == {"peer-1": 2.0}
    assert config.faults.edge[0].steps == (1, 2)
    assert config.faults.crash[0].at_step == 3


def test_shards_are_as_many_as_peers_unless_set() -> None:
    assert parse("peers = 5").shards == 5
    assert parse("peers = 5", ["data.shards=2"]).shards == 2


def test_a_number_may_be_a_run_id() -> None:
    assert parse("run_id = 7").run_id == "7"


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().peers = 3  # type: ignore[misc]


# --- round trip -----------------------------------------------------------------------------------


def test_what_is_written_reads_back_equal() -> None:
    config = parse(EVERYTHING)
    assert parse(config.to_toml()) == config
    assert parse(RunConfig().to_toml()) == RunConfig()


@given(
    options=st.dictionaries(st.text(max_size=8), TOML_VALUES, max_size=3),
    lr=st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False),
    seed=st.integers(0, 2**31 - 1),
    every=st.integers(0, 2**40),
    drop=st.floats(0, 1),
)
def test_any_values_read_back_equal(
    options: dict[str, Any], lr: float, seed: int, every: int, drop: float
) -> None:
    """To the last bit: a run must not depend on how often its config was passed on."""
    config = validate(
        {
            "seed": seed,
            "task": {"options": options},
            "algorithm": {"options": options},
            "optimizer": {"lr": lr},
            "evaluation": {"every": every},
            "faults": {"drop": drop},
        }
    )
    assert parse(config.to_toml()) == config


# --- overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("steps=12", ("steps",), 12),
        ("faults.drop=0.1", ("faults", "drop"), 0.1),
        ("algorithm.overlap=true", ("algorithm", "overlap"), True),
        ("topology.graph=chain", ("topology", "graph"), "chain"),  # a bare word
        ('topology.graph = "ring"', ("topology", "graph"), "ring"),
        ("run_id=a=b".replace("a=b", "a.b"), ("run_id",), "a.b"),
        ("task.options.dimension=3", ("task", "options"), {"dimension": 3}),
        ("optimizer.betas=[0.5, 0.9]", ("optimizer", "betas"), (0.5, 0.9)),
        ("task.options={dimension = 2}", ("task", "options"), {"dimension": 2}),
    ],
)
def test_an_override_sets_one_value(override: str, path: tuple[str, ...], value: object) -> None:
    found: Any = parse("", [override])
    for part in path:
        found = getattr(found, part)
    assert found == value


def test_overrides_go_before_the_file_and_the_last_one_wins() -> None:
    config = parse(EVERYTHING, ["steps=8", "faults.drop=0.2", "steps=9"])
    assert (config.steps, config.faults.drop, config.peers) == (9, 0.2, 4)


@pytest.mark.parametrize("override", ["steps", "=3", ".steps=3", "faults.=3", "faults..drop=3"])
def test_an_override_of_another_form_is_refused(override: str) -> None:
    error = refusal("", override)
    assert str(error).startswith(f"--set = {override!r}: not of the form section.key=value")


def test_an_override_below_a_value_is_refused() -> None:
    assert "steps is not a section" in str(refusal("steps = 3", "steps.many=3"))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "remedy"),
    [
        ("step = 3", "step", "did you mean 'steps'?"),
        ("[optimiser]\nlr = 1", "optimiser", "did you mean 'optimizer'?"),
        ("[algorithm]\noverlapp = true", "algorithm.overlapp", "did you mean 'overlap'?"),
        ("[faults]\nprobability = 1", "faults.probability", "known keys: crash, delay_s, drop,"),
        (
            "[[faults.edge]]\nsender = 'a'\nreciever = 'b'\nreceiver = 'b'",
            "faults.edge.0.reciever",
            "did you mean 'receiver'?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(text: str, field: str, remedy: str) -> None:
    error = refusal(text)
    assert (error.field, error.problem) == (field, "unknown key")
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("peers=0", "peers"),
        ("steps=1.5", "steps"),
        ("seed=-1", "seed"),
        ("seed=2147483648", "seed"),
        ("schema_version=2", "schema_version"),
        ("run_id=../etc", "run_id"),
        ("run_id=''", "run_id"),
        ("data.alpha=0", "data.alpha"),
        ("optimizer.lr=inf", "optimizer.lr"),
        ("optimizer.lr=nan", "optimizer.lr"),
        ("optimizer.name=adagrad", "optimizer.name"),
        ("faults.drop=1.01", "faults.drop"),
        ("faults.loss=quiet", "faults.loss"),
        ("faults.slow={peer-1 = 0.5}", "faults.slow"),
        ("transport.deadline_s=0", "transport.deadline_s"),
        ("transport.wire_format=int8", "transport.wire_format"),
        ("coordinator.lease_s=0", "coordinator.lease_s"),
        ("algorithm.momentum=1", "algorithm.momentum"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(override: str, field: str) -> None:
    error = refusal("", override)
    assert error.field == field
    assert str(error).startswith(f"{field} = ")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[faults.crash]]\npeer = 'a'", "needs either at_s or at_step"),
        ("[[faults.crash]]\npeer = 'a'\nat_s = 1\nat_step = 1", "needs either at_s or at_step"),
        ("[[faults.partition]]\nstart_s = 2\nend_s = 2\ngroup = ['a']", "end_s is not after"),
        ("[[faults.edge]]\nsender = 'a'\nreceiver = 'a'", "are the same peer"),
    ],
)
def test_values_that_contradict_each_other_are_refused(text: str, words: str) -> None:
    assert words in str(refusal(text))


def test_broken_toml_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("peers = 3\nsteps = = 4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 2.*not valid TOML") as caught:
        load(path)
    assert caught.value.field == str(path)


@pytest.mark.parametrize("content", [None, b"run_id = '\xff'"], ids=["missing", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load(path)
    assert caught.value.value == str(path)


@pytest.mark.parametrize(
    ("name", "local_steps", "warns"),
    [
        ("relaysgd", 1, False),
        ("relaysgd", 2, True),
        ("d2", 4, True),
        ("gradient-tracking", 4, True),
        ("local-sgd", 4, False),  # nobody expects anything else of it
    ],
)
def test_local_steps_bring_back_a_bias_and_the_config_says_so(
    name: str, local_steps: int, warns: bool
) -> None:
    text = f"[algorithm]\nname = '{name}'\nlocal_steps = {local_steps}"
    warnings = parse(text).warnings
    assert len(warnings) == warns
    for warning in warnings:
        assert warning.startswith(
            f"algorithm.local_steps = {local_steps}: with more than one, {name}"
        )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = " + "[" * 100_000, "not valid TOML"),
        ("steps = " + "9" * 5000, "not valid TOML"),
        ("# " + "x" * (1 << 20), "longer than"),
    ],
)
def test_text_that_means_harm_is_an_ordinary_error(text: str, problem: str) -> None:
    """The config of a run comes to its peers from another machine."""
    with pytest.raises(ConfigError, match=problem) as caught:
        parse(text)
    assert len(str(caught.value)) < 500
