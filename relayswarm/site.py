"""A site's own law: what its operator demands of any run, in a file that never leaves the site.

`relayswarm peer --site site.toml` holds the run config that a coordinator hands out against it, and
this peer to it for as long as it takes part (`peer.law`).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from relayswarm.errors import ConfigError
from relayswarm.schema import Section, Versioned, first_problem

SCHEMA_VERSION = 1
"""Of the site's file; when to raise it: docs/stability.md."""

LOSS = "loss"
"""Among names of metrics: the training loss, which peers tell the coordinator and Prometheus."""

DIGEST = "sha256:"
"""Before the digest of a task's file, among names of tasks."""


class AllowConfig(Section):
    """What may be trained here, and with whom."""

    tasks: tuple[str, ...] | None = Field(
        None,
        description="Tasks that may be trained: names of built-in and packages' tasks, and for "
        "tasks in files `sha256:` and the file's digest, as `relayswarm check` prints it. Unset: "
        "any that the command line allows.",
    )
    min_local_steps: int = Field(
        1, ge=1, description="Least `algorithm.local_steps`: optimizer steps behind each message."
    )
    min_swarm_size: int = Field(
        1,
        ge=1,
        description="Least number of members: a run with fewer `peers` is not joined, and while "
        "members are fewer this peer trains on alone and sends nothing.",
    )
    metrics: tuple[str, ...] | None = Field(
        None,
        description="Names of the measurements that may leave: those of the task's evaluation, and "
        "`loss` for the training loss. Unset: all.",
    )

    @field_validator("tasks")
    @classmethod
    def _digests(cls, tasks: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for task in tasks or ():
            digest = task.removeprefix(DIGEST)
            if digest != task and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
                raise ValueError(f"{task!r} is not {DIGEST} and 64 hexadecimal digits")
        return tasks


class ReadersConfig(Section):
    """Who may read this peer's model by `ReadModel` (`relayswarm pull`, and peers that join later).
    Readers are known by their certificates: without TLS on both sides nobody is."""

    allow: Literal["nobody", "neighbours", "members", "anyone"] = Field(
        "neighbours", description="In the present epoch; `anyone` needs no certificate."
    )
    names: tuple[str, ...] = Field(
        (),
        description="Further readers, by the names in their certificates: the operator, or sites "
        "that are to join a run under way.",
    )


class SitePrivacyConfig(Section):
    """What is demanded of, and done to, the movement of each step before anything is sent."""

    clip: float | None = Field(
        None, gt=0, description="In the place of the run's `privacy.clip`, for this peer alone."
    )
    noise_multiplier: float | None = Field(
        None, ge=0, description="Likewise for `privacy.noise_multiplier`."
    )
    max_clip: float | None = Field(
        None, gt=0, description="A larger `privacy.clip`, or none, is refused."
    )
    min_noise_multiplier: float | None = Field(
        None, gt=0, description="A smaller `privacy.noise_multiplier`, or none, is refused."
    )


class AuditConfig(Section):
    """The record of all that leaves (see docs/sites.md#audit)."""

    file: str | None = Field(
        None,
        description="Where it is written, from the folder of this file. Unset: `audit.jsonl` in "
        "`--state-dir`.",
    )
    digest: Literal["blake3", "sha256"] | None = Field(
        None,
        description="Of payloads. `blake3` takes a small part of the time of `sha256`. Unset: "
        "`blake3`, or `sha256` on platforms for which there is no package of the former.",
    )


class SiteConfig(Versioned):
    """A site's law. See docs/sites.md for each field."""

    newest = SCHEMA_VERSION
    schema_version: int = Field(
        SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION, description="Of this format: docs/stability.md."
    )
    allow: AllowConfig = AllowConfig()
    readers: ReadersConfig = ReadersConfig()
    privacy: SitePrivacyConfig = SitePrivacyConfig()
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _heeds_itself(self) -> Self:
        privacy = self.privacy
        if privacy.clip and privacy.max_clip and privacy.clip > privacy.max_clip:
            raise ValueError("privacy.clip is above privacy.max_clip")
        least = privacy.min_noise_multiplier
        if least and privacy.noise_multiplier is not None and privacy.noise_multiplier < least:
            raise ValueError("privacy.noise_multiplier is below privacy.min_noise_multiplier")
        return self


def load(path: Path) -> SiteConfig:
    """Read a site's file; `audit.file` comes back absolute. Raises ConfigError for a file that
    cannot be read, and for anything in it that is unknown or out of range."""
    try:
        tree: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise ConfigError("--site", str(path), problem, "check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            "--site", str(path), f"not valid TOML ({error})", "mend that line"
        ) from error
    try:
        site = SiteConfig.model_validate(tree)
    except ValidationError as error:
        found = first_problem(error, SiteConfig, "docs/site.md")
        raise ConfigError(
            f"{path.name}: {found.field}", found.value, found.problem, found.remedy
        ) from error
    if site.audit.file is None:
        return site
    audit = site.audit.model_copy(update={"file": str(path.parent.absolute() / site.audit.file)})
    return site.model_copy(update={"audit": audit})
