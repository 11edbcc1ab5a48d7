"""Where settings come from, and what wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peer import cli
from peer.localswarm import session
from peer.localswarm.process import environment
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError, ExitCode
from relayswarm.settings import Override, in_force, load_over, of_environment
from relayswarm.variables import COMMANDS, is_of_others


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text("steps = 50\nseed = 5\n[data]\nalpha = 0.5\n[task.options]\nwidth = 3\n")
    return path


def relayswarm(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


# --- variables ----------------------------------------------------------------------------------


def test_variables_are_named_after_settings() -> None:
    variables = {
        "RELAYSWARM_STEPS": "7",
        "RELAYSWARM_DATA__ALPHA": "0.1",
        "RELAYSWARM_TASK__OPTIONS__WIDTH": "4",
        "RELAYSWARM_FAULTS__SLOW__PEER": "2.0",
        "RELAYSWARM_UP_STEPS": "8",  # of a command
        "STEPS": "10",
    }
    assert of_environment(variables) == [
        Override("data.alpha=0.1", "RELAYSWARM_DATA__ALPHA"),
        Override("faults.slow.peer=2.0", "RELAYSWARM_FAULTS__SLOW__PEER"),
        Override("steps=7", "RELAYSWARM_STEPS"),
        Override("task.options.width=4", "RELAYSWARM_TASK__OPTIONS__WIDTH"),
    ]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("RELAYSWARM_DATA__ALHPA", "did you mean RELAYSWARM_DATA__ALPHA?"),
        ("RELAYSWARM_DATAS__ALPHA", "did you mean RELAYSWARM_DATA__ALPHA?"),
        ("RELAYSWARM_X__Y", "see docs/config.md"),
        ("RELAYSWARM_DATA__", "did you mean RELAYSWARM_DATA__ALPHA?"),
        ("RELAYSWARM_TASK__OPTIONS__", "did you mean RELAYSWARM_TASK__OPTIONS?"),
        ("RELAYSWARM_DATA__ALPHA__X", "did you mean RELAYSWARM_DATA__ALPHA?"),
        ("RELAYSWARM_UP__STEPS", "did you mean RELAYSWARM_STEPS?"),
        ("RELAYSWARM_STEP", "did you mean RELAYSWARM_STEPS?"),
        ("RELAYSWARM_PEER", "did you mean RELAYSWARM_PEERS?"),
        ("RELAYSWARM_SEEDS", "did you mean RELAYSWARM_SEED?"),
        ("RELAYSWARM_RUNID", "did you mean RELAYSWARM_RUN_ID?"),
        ("RELAYSWARM_DATA_ALHPA", "did you mean RELAYSWARM_DATA__ALPHA?"),
        ("RELAYSWARM_ALGORITHM", "did you mean RELAYSWARM_ALGORITHM__NAME?"),
        ("RELAYSWARM_HOME", "see docs/config.md"),
        ("RELAYSWARM_", "see docs/config.md"),
    ],
)
def test_a_variable_that_stands_for_no_setting_is_refused(name: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match="stands for no setting") as caught:
        of_environment({name: "1"})
    assert (caught.value.field, caught.value.remedy) == (name, remedy)


def test_one_underscore_in_the_place_of_two_is_refused() -> None:
    with pytest.raises(ConfigError, match="one underscore where two stand") as caught:
        of_environment({"RELAYSWARM_DATA_MIN_SAMPLES": "1"})
    assert caught.value.remedy == "write RELAYSWARM_DATA__MIN_SAMPLES"


@pytest.mark.parametrize(
    "name",
    [
        "RELAYSWARM_LIFELINE",
        "RELAYSWARM_HEALTH_TLS_CA",
        "RELAYSWARM_TOPOLOGY_GRAPH",  # a section shares its name with the command
        # What Kubernetes tells of services called relayswarm and relayswarm-web.
        "RELAYSWARM_SERVICE_HOST",
        "RELAYSWARM_SERVICE_PORT",
        "RELAYSWARM_SERVICE_PORT_GRPC",
        "RELAYSWARM_PORT",
        "RELAYSWARM_PORT_50050_TCP",
        "RELAYSWARM_PORT_50050_TCP_ADDR",
        "RELAYSWARM_WEB_SERVICE_HOST",
        "RELAYSWARM_WEB_PORT_80_UDP_PROTO",
    ],
)
def test_a_variable_that_is_known_as_something_else_is_passed_over(name: str) -> None:
    assert of_environment({name: "1"}) == []


def test_options_of_all_commands_are_known() -> None:
    assert tuple(cli.COMMANDS) == COMMANDS


def test_no_setting_is_taken_for_something_else() -> None:
    """But those of sections that share their name with a command, where two underscores tell."""
    for setting in in_force(None, []):
        section, *_ = setting.key.split(".")
        name = "RELAYSWARM_" + setting.key.replace(".", "_").upper()
        assert is_of_others(name) == (section in COMMANDS), name


def test_an_error_names_the_variable_that_it_comes_from(file: Path) -> None:
    bad = Override("data.alpha=no", "RELAYSWARM_DATA__ALPHA")
    with pytest.raises(ConfigError, match=r"^RELAYSWARM_DATA__ALPHA: data.alpha = 'no': "):
        load_over(file, [bad])
    with pytest.raises(ConfigError, match=r"^data.alpha = 'nor': "):
        load_over(file, [bad, Override("data.alpha=nor", "--set")])
    with pytest.raises(ConfigError, match=r"^steps = -1: "):
        load_over(file, [Override("data.alpha=1", bad.source), Override("steps=-1", "--set")])
    with pytest.raises(ConfigError, match=r"^RELAYSWARM_UP_SET: --set = 'steps': "):
        load_over(file, [Override("steps", "RELAYSWARM_UP_SET"), Override("peers=2", "--set")])


def test_every_setting_has_a_variable() -> None:
    """Those of sections within lists have none: only the whole list."""
    for setting in in_force(None, []):
        if setting.key != "schema_version":
            name = "RELAYSWARM_" + setting.key.replace(".", "__").upper()
            assert [one.key for one in of_environment({name: "1"})] == [setting.key]


# --- what is in force ---------------------------------------------------------------------------


def test_each_value_is_told_with_its_source(file: Path) -> None:
    overrides = [Override("steps=60", "RELAYSWARM_STEPS"), Override("steps=70", "--set")]
    found = {setting.key: setting for setting in in_force(file, overrides)}
    assert (found["steps"].value, found["steps"].source) == (70, "--set")
    assert (found["seed"].value, found["seed"].source) == (5, str(file))
    assert (found["data.alpha"].value, found["data.alpha"].source) == (0.5, str(file))
    assert (found["task.options.width"].value, found["task.options.width"].source) == (3, str(file))
    assert (found["peers"].value, found["peers"].source) == (8, "default")
    assert (found["optimizer.lr"].value, found["optimizer.lr"].source) == (None, "default")
    assert len(found) > 50


def test_a_table_that_is_replaced_as_a_whole(file: Path) -> None:
    found = in_force(file, [Override("task.options={depth = 1}", "--set")])
    options = {s.key: s.source for s in found if s.key.startswith("task.options")}
    assert options == {"task.options.depth": "--set"}


def test_what_is_in_force_is_what_runs(file: Path) -> None:
    """Written as TOML it reads back as the config."""
    tree: dict[str, Any] = {}
    for setting in in_force(file, [Override("faults.drop=0.1", "--set")]):
        place = tree
        *way, last = setting.key.split(".")
        for part in way:
            place = place.setdefault(part, {})
        place[last] = setting.value
    config = RunConfig.model_validate(tree)
    assert (config.steps, config.data.alpha, config.faults.drop) == (50, 0.5, 0.1)


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "arguments", "steps", "source"),
    [
        ({}, [], 50, "FILE"),
        ({"RELAYSWARM_STEPS": "60"}, [], 60, "RELAYSWARM_STEPS"),
        ({"RELAYSWARM_STEPS": "60"}, ["--set", "steps=70"], 70, "--set"),
        ({"RELAYSWARM_STEPS": "60", "RELAYSWARM_CONFIG_SET": "steps=65"}, [], 65, "RELAYSWARM_C"),
        ({"RELAYSWARM_CONFIG_SET": "steps=65"}, ["--set", "steps=70"], 70, "--set"),
    ],
)
def test_show(
    file: Path,
    variables: dict[str, str],
    arguments: list[str],
    steps: int,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert relayswarm("config", "show", str(file), *arguments, "--json") == 0
    settings = {one["key"]: one for one in json.loads(capsys.readouterr().out)["settings"]}
    assert settings["steps"]["value"] == steps
    assert settings["steps"]["source"].startswith(source.replace("FILE", str(file)))
    assert relayswarm("config", "show", str(file), *arguments) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("steps ")]
    assert line.split()[1] == str(steps)


def test_a_typed_set_wins_over_the_variable_of_a_flag(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[RunConfig] = []
    monkeypatch.setattr(session, "up", lambda config, _: ran.append(config) or ExitCode.DONE)
    monkeypatch.setenv("RELAYSWARM_UP_STEPS", "60")
    monkeypatch.setenv("RELAYSWARM_UP_PEERS", "3")
    monkeypatch.setenv("RELAYSWARM_SEED", "9")
    monkeypatch.chdir(tmp_path)
    assert relayswarm("up", str(file), "--set", "steps=70", "--alpha", "0.2") == 0
    (config,) = ran
    assert (config.steps, config.peers, config.seed, config.data.alpha) == (70, 3, 9, 0.2)


def test_an_unknown_key_and_an_unknown_variable_end_with_2(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relayswarm("config", "show", str(file), "--set", "data.alhpa=1") == ExitCode.USAGE
    assert "did you mean 'alpha'?" in capsys.readouterr().err
    for name, near in (("DATA__ALHPA", "DATA__ALPHA"), ("STEP", "STEPS")):
        with monkeypatch.context() as patched:
            patched.setenv(f"RELAYSWARM_{name}", "1")
            assert relayswarm("coordinator", "--config", str(file)) == ExitCode.USAGE
        assert f"did you mean RELAYSWARM_{near}?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["RELAYSWARM_DATA__ALPHA", "RELAYSWARM_{command}_SET"])
@pytest.mark.parametrize(
    "words",
    ["up FILE", "simulate FILE", "check FILE", "config show FILE", "coordinator --config FILE"],
)
def test_all_commands_name_the_variable_that_an_error_comes_from(
    file: Path,
    name: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = words.replace("FILE", str(file)).split()
    name = name.format(command=arguments[0].upper())
    monkeypatch.setenv(name, "data.alpha=no" if name.endswith("SET") else "no")
    assert relayswarm(*arguments) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith(f"error: {name}: data.alpha = 'no': ")


def test_children_of_up_are_told_by_their_command_line_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RELAYSWARM_STEPS", "60")
    monkeypatch.setenv("RELAYSWARM_COORDINATOR_SET", "steps=60")
    names = [name for name in environment() if name.startswith("RELAYSWARM_")]
    assert names == ["RELAYSWARM_LIFELINE"]
