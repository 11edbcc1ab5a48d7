"""A site's own law, held against a run's config, its epochs, and whoever asks for the model.

What belongs here: decisions. Who asks for them: `peer.parts` before it builds anything, the daemon
before it sends, and the transport before it answers a reader.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from peer.algorithms.core import Epoch, View
from relayswarm import site
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError, LawError
from relayswarm.site import DIGEST, AllowConfig, ReadersConfig, SiteConfig

EPOCHS = 8
"""Epochs whose size is remembered: of older ones nothing is sent any more."""

FILE = "site.toml"


def file_digest(path: Path) -> str:
    """Of a task's file, as a site's law names it. Raises ConfigError."""
    try:
        return DIGEST + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise ConfigError("task.file", str(path), problem, "check the path") from error


class Law:
    """What the operator of one peer demands. Thread-safe."""

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self._guard = threading.Lock()
        self._sizes: dict[Epoch, int] = {}
        self._view: View | None = None

    def applied(self, config: RunConfig, task_file: Path | None) -> RunConfig:
        """The run config as this peer follows it, if it is as the law demands; the task of a run
        with `task.file` is the one in `task_file`. Raises LawError."""
        own, of_run = self.config.privacy, config.privacy
        clip = of_run.clip if own.clip is None else own.clip
        noise = own.noise_multiplier
        noise = of_run.noise_multiplier if noise is None else noise
        privacy = of_run.model_copy(update={"clip": clip, "noise_multiplier": noise})
        config = config.model_copy(update={"privacy": privacy})
        for field, value, demand, key in self._violations(config, task_file):
            remedy = "join another run, or change that file if you mean to allow it"
            raise LawError(field, value, f"this site demands {demand} ({key} in {FILE})", remedy)
        return config

    def may_tell(self, metric: str) -> bool:
        """Whether a measurement of that name, or the training loss, may leave."""
        allowed = self.config.allow.metrics
        return allowed is None or metric in allowed

    def viewed(self, view: View) -> None:
        """A new epoch; to be told before anybody else."""
        with self._guard:
            self._view = view
            self._sizes[view.epoch] = view.n
            while len(self._sizes) > EPOCHS:
                del self._sizes[next(iter(self._sizes))]

    def may_send(self, epoch: Epoch) -> bool:
        """Whether that epoch's swarm is large enough for a message in it."""
        with self._guard:
            return self._sizes.get(epoch, 0) >= self.config.allow.min_swarm_size

    def objection(self, names: frozenset[str]) -> str:
        """Why a reader with these names in its certificate may not have the model; '' if it may."""
        readers, least = self.config.readers, self.config.allow.min_swarm_size
        with self._guard:
            view = self._view
        if names & set(readers.names):
            return ""
        if view is not None and view.n < least:
            return f"this site gives no model while members are fewer than {least}"
        if readers.allow == "anyone" or names & _readers(readers, view):
            return ""
        if not names and readers.allow != "nobody":
            return (
                f"this site gives its model to {readers.allow}, by certificate, and you show none"
            )
        return f"this site gives its model to {readers.allow}; its operator can name you"

    def _violations(
        self, config: RunConfig, task_file: Path | None
    ) -> Iterator[tuple[str, object, str, str]]:
        """Field, value, what is demanded, and by which key."""
        allow, privacy = self.config.allow, self.config.privacy
        yield from _of_task(config, task_file, allow)
        method, least = config.algorithm, allow.min_local_steps
        if method.time_budget_s and least > 1:
            demand = f"at least {least} local steps, and time says nothing of their number"
            field = "algorithm.time_budget_s"
            yield field, method.time_budget_s, demand, "allow.min_local_steps"
        elif method.local_steps < least:
            demand = f"at least {least}"
            yield "algorithm.local_steps", method.local_steps, demand, "allow.min_local_steps"
        for option in ("geometric", "script"):
            if least > 1 and method.options.get(option):
                demand = f"at least {least} local steps, and this may have fewer"
                value = method.options[option]
                yield f"algorithm.options.{option}", value, demand, "allow.min_local_steps"
        if config.peers < allow.min_swarm_size:
            demand = f"at least {allow.min_swarm_size}"
            yield "peers", config.peers, demand, "allow.min_swarm_size"
        clip, noise = config.privacy.clip, config.privacy.noise_multiplier
        if privacy.max_clip is not None and (clip is None or clip > privacy.max_clip):
            yield "privacy.clip", clip, f"at most {privacy.max_clip:g}", "privacy.max_clip"
        if privacy.min_noise_multiplier is not None and noise < privacy.min_noise_multiplier:
            demand = f"at least {privacy.min_noise_multiplier:g}"
            yield "privacy.noise_multiplier", noise, demand, "privacy.min_noise_multiplier"
        if noise and clip is None:
            demand = "noise in proportion to a clipping norm, and there is none"
            yield "privacy.clip", clip, demand, "privacy.noise_multiplier"
        if noise and config.deterministic and privacy != site.SitePrivacyConfig():
            demand = "noise that nobody can compute again"
            yield "deterministic", True, demand, "privacy"


def _of_task(
    config: RunConfig, task_file: Path | None, allow: AllowConfig
) -> Iterator[tuple[str, object, str, str]]:
    if allow.tasks is None:
        return
    allowed, key = ", ".join(allow.tasks) or "none", "allow.tasks"
    if config.task.file is None:
        if config.task.name not in allow.tasks:
            yield "task.name", config.task.name, f"one of these tasks: {allowed}", key
    elif task_file is not None:
        digest = file_digest(task_file)
        if digest not in allow.tasks:
            demand = f"one of these tasks: {allowed}; the file's digest is {digest}"
            yield "task.file", str(task_file), demand, key


def _readers(readers: ReadersConfig, view: View | None) -> set[str]:
    if view is None or readers.allow not in ("neighbours", "members"):
        return set()
    if readers.allow == "members":
        return set(view.members)
    return {*view.neighbours, *(peer for tree in view.trees for peer in tree)}


NO_LAW = Law(SiteConfig(readers=ReadersConfig(allow="anyone")))
"""Of a peer without a site's file."""
