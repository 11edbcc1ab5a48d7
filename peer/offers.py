"""What installed packages offer under a name: tasks and algorithms, as entry points.

Built-in names go first. Nothing is imported but what was asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points

from relayswarm.errors import ConfigError


@dataclass(frozen=True)
class Offers:
    """A group of entry points whose names stand in the run config beside built-in ones."""

    group: str
    field: str  # of the run config, such as "task.name"
    noun: str  # what is offered, such as "task"

    def known(self, built_in: Iterable[str]) -> list[str]:
        """All names that this installation has, in alphabetical order."""
        return sorted({*built_in, *(entry.name for entry in entry_points(group=self.group))})

    def require_allowed(
        self, name: str, built_in: Iterable[str], allowed: Collection[str], flag: str
    ) -> None:
        """Raise ConfigError unless `name` is built in, or offered and one of the `allowed`.

        For names that another machine has chosen; nothing is imported.
        """
        known = self.known(built_in)
        if name not in known:
            raise self._unknown(name, known)
        if name not in built_in and name not in allowed:
            raise ConfigError(
                self.field,
                name,
                f"this {self.noun} is a package's, and has not been allowed here",
                f"if you trust that package, start this peer with {flag} {name}",
            )

    def load(self, name: str, built_in: Iterable[str]) -> object:
        """What is offered as `name`. Raises ConfigError if nothing is, or it cannot be imported."""
        offered = list(entry_points(group=self.group, name=name))
        if not offered:
            raise self._unknown(name, self.known(built_in))
        (entry, *_) = offered
        try:
            return entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                self.field,
                name,
                f"cannot be imported from {entry.value} ({error})",
                "mend or reinstall the package that offers it",
            ) from error

    def _unknown(self, name: str, known: list[str]) -> ConfigError:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        remedy = f"{hint}known: {', '.join(known)}"
        return ConfigError(self.field, name, f"unknown {self.noun}", remedy)
