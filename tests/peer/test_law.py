"""What a site's law forbids: by the run's config, by the epoch, by who asks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from peer.algorithms.core import Epoch, View
from peer.law import NO_LAW, Law, file_digest
from relayswarm import config as run_config
from relayswarm.config import RunConfig
from relayswarm.errors import ExitCode, LawError
from relayswarm.site import SiteConfig

DIGEST = "sha256:" + "0" * 64


def law(**tables: Mapping[str, Any]) -> Law:
    return Law(SiteConfig.model_validate(tables))


def run(*overrides: str) -> RunConfig:
    return run_config.parse("", overrides)


def view(n: int, number: int = 1) -> View:
    members = {f"peer-{k}": 1 for k in range(n)}
    trees = ({"peer-1": n - 1},) if n > 1 else ({},)
    return View(Epoch(1, number, 9), 0, "peer-0", members, trees, neighbours=("peer-2",))


@pytest.mark.parametrize(
    ("tables", "overrides", "field", "says"),
    [
        ({"allow": {"min_local_steps": 8}}, [], "algorithm.local_steps = 1", "at least 8"),
        (
            {"allow": {"min_local_steps": 8}},
            ["algorithm.name=swarmsgd", "algorithm.time_budget_s=1"],
            "algorithm.time_budget_s = 1.0",
            "at least 8 local steps",
        ),
        ({"allow": {"min_swarm_size": 9}}, [], "peers = 8", "at least 9"),
        ({"allow": {"tasks": ["quadratics"]}}, [], "task.name = 'digits'", "tasks: quadratics"),
        ({"allow": {"tasks": []}}, [], "task.name = 'digits'", "tasks: none"),
        ({"privacy": {"max_clip": 1}}, [], "privacy.clip = None", "at most 1"),
        ({"privacy": {"max_clip": 1}}, ["privacy.clip=2"], "privacy.clip = 2.0", "at most 1"),
        (
            {"privacy": {"min_noise_multiplier": 0.5}},
            ["privacy.clip=2", "privacy.noise_multiplier=0.4"],
            "privacy.noise_multiplier = 0.4",
            "at least 0.5",
        ),
        ({"privacy": {"noise_multiplier": 1}}, [], "privacy.clip = None", "clipping norm"),
        (
            {"privacy": {"noise_multiplier": 1, "clip": 1}},
            ["deterministic=true"],
            "deterministic = True",
            "nobody can compute again",
        ),
    ],
)
def test_a_run_that_violates_it_is_refused_by_field_value_and_demand(
    tables: Mapping[str, Any], overrides: list[str], field: str, says: str
) -> None:
    with pytest.raises(LawError) as error:
        law(**tables).applied(run(*overrides), None)
    assert str(error.value).startswith(f"{field}: this site demands ")
    assert says in str(error.value)
    assert error.value.exit_code == ExitCode.COULD_NOT_JOIN


def test_a_run_that_keeps_to_it_is_taken_with_the_sites_own_noise() -> None:
    tables = {
        "allow": {"min_local_steps": 4, "min_swarm_size": 8, "tasks": ["digits"]},
        "privacy": {"clip": 0.5, "min_noise_multiplier": 1, "noise_multiplier": 2},
    }
    config = run("algorithm.local_steps=4")
    applied = law(**tables).applied(config, None)
    assert (applied.privacy.clip, applied.privacy.noise_multiplier) == (0.5, 2)
    assert applied.model_copy(update={"privacy": config.privacy}) == config


def test_a_task_in_a_file_is_allowed_by_its_content_alone(tmp_path: Path) -> None:
    file = tmp_path / "task.py"
    file.write_text("# one\n")
    digest = file_digest(file)
    assert digest == "sha256:" + hashlib.sha256(b"# one\n").hexdigest()
    config = run("task.file=theirs.py", "task.name=digits")
    law(allow={"tasks": [digest]}).applied(config, file)
    with pytest.raises(LawError, match=digest):
        law(allow={"tasks": ["digits", DIGEST]}).applied(config, file)
    file.write_text("# two\n")
    with pytest.raises(LawError):
        law(allow={"tasks": [digest]}).applied(config, file)


def test_nothing_is_sent_in_an_epoch_with_too_few_members() -> None:
    own = law(allow={"min_swarm_size": 3})
    assert not own.may_send(Epoch(1, 1, 9))
    own.viewed(view(3, 1))
    own.viewed(view(2, 2))
    assert own.may_send(Epoch(1, 1, 9))  # what is still on its way
    assert not own.may_send(Epoch(1, 2, 9))
    own.viewed(view(3, 3))
    assert own.may_send(Epoch(1, 3, 9))


@pytest.mark.parametrize(
    ("allow", "may_read"),
    [
        ("nobody", {"operator"}),
        ("neighbours", {"operator", "peer-1", "peer-2"}),
        ("members", {"operator", "peer-0", "peer-1", "peer-2", "peer-3"}),
        ("anyone", {"", "operator", "peer-0", "peer-1", "peer-2", "peer-3", "peer-9"}),
    ],
)
def test_who_may_read_the_model(allow: str, may_read: set[str]) -> None:
    own = law(readers={"allow": allow, "names": ["operator"]})
    own.viewed(view(4))
    everyone = ["", "operator", *(f"peer-{k}" for k in (0, 1, 2, 3, 9))]
    found = {name for name in everyone if not own.objection(frozenset({name} - {""}))}
    assert found == may_read


def test_no_model_is_given_while_members_are_too_few_but_to_those_named() -> None:
    own = law(readers={"allow": "anyone", "names": ["operator"]}, allow={"min_swarm_size": 3})
    own.viewed(view(2))
    assert "fewer than 3" in own.objection(frozenset({"peer-1"}))
    assert own.objection(frozenset({"operator"})) == ""


def test_without_a_law_everything_is_allowed() -> None:
    assert NO_LAW.applied(run(), None) == run()
    assert NO_LAW.objection(frozenset()) == ""
    assert NO_LAW.may_tell("accuracy")


def test_metrics_are_allowed_by_name() -> None:
    own = law(allow={"metrics": ["accuracy"]})
    assert own.may_tell("accuracy")
    assert not own.may_tell("loss")
