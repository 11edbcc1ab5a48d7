"""The site's file: what it says, and what it is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayswarm import site
from relayswarm.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_keeps_the_model_to_neighbours_and_demands_nothing(tmp_path: Path) -> None:
    found = site.load(written(tmp_path, ""))
    assert found == site.SiteConfig()
    assert found.readers.allow == "neighbours"
    assert found.allow.tasks is found.allow.metrics is None


def test_the_audit_lies_beside_the_file(tmp_path: Path) -> None:
    found = site.load(written(tmp_path, '[audit]\nfile = "log/audit.jsonl"'))
    assert found.audit.file == str(tmp_path / "log" / "audit.jsonl")


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("[allow]\nmin_local_step = 8", "site.toml: allow.min_local_step", "'min_local_steps'?"),
        ("[alow]", "site.toml: alow", "did you mean 'allow'?"),
        ("[allow]\nmin_swarm_size = 0", "site.toml: allow.min_swarm_size", "greater than or equal"),
        ('[allow]\ntasks = ["sha256:12"]', "site.toml: allow.tasks", "64 hexadecimal digits"),
        ('[readers]\nallow = "all"', "site.toml: readers.allow", "'neighbours'"),
        ("[privacy]\nclip = 2\nmax_clip = 1", "site.toml: ", "privacy.clip is above"),
        ("schema_version = 2", "schema_version", "newer release"),
        ("[allow", "--site", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(
    tmp_path: Path, text: str, field: str, says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        site.load(written(tmp_path, text))
    assert error.value.field.startswith(field)
    assert says in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--site .*cannot be read"):
        site.load(tmp_path / "site.toml")
