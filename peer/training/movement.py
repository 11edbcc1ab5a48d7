"""What happens to a peer's movement of a step before anybody sees it: clipping and normal noise.

A step moves the model from x to x_half. Sent is never x_half itself but

    x + min(1, C / |x_half - x|) (x_half - x) + z C N(0, 1)

(C = `privacy.clip`, z = `privacy.noise_multiplier`): the Gaussian mechanism on the movement. All
that leaves later follows from such models. `Spent` adds up what many steps give away.

The guarantee is one of the whole site, step by step: of a site whose movement of each step is as it
is, and the same site whose movements are zero, an observer of all that it sends cannot tell which
one it is but for (epsilon, delta). Two sites with whatever different data are two times C apart
instead of C: `of_replacement`. It does not cover measurements, weights and the time steps take.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from relayswarm.config import PrivacyConfig
from relayswarm.errors import ConfigError
from relayswarm.schema import require_readable

SCHEMA_VERSION = 1
"""Of the file that `Spent` is kept in."""

ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    *(1 << k for k in range(6, 21)),
)
"""Renyi orders among which the best is taken."""


class Spent:
    """How much the releases so far give away. Each is a Gaussian mechanism of sensitivity C and
    standard deviation z C, so of Renyi divergence a / (2 z^2) at order a (Mironov, 2017, corollary
    3); divergences add up, whatever the later ones depend on (proposition 1)."""

    def __init__(self, releases: int = 0, inverse_squares: float = 0.0) -> None:
        self.releases = releases
        self.inverse_squares = inverse_squares  # the sum of 1 / z^2; infinite without noise
        self._file: Path | None = None

    def add(self, noise_multiplier: float) -> None:
        """One more release; on the disk, if this is kept there, before it is made."""
        self.releases += 1
        self.inverse_squares += 1 / noise_multiplier**2 if noise_multiplier else math.inf
        if self._file is not None:
            self._write(self._file)

    def keep(self, file: Path) -> None:
        """Go on from what is in the file, and write each further release to it. Raises ConfigError
        if it cannot be read or written, or there is something else in it."""
        if file.exists():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                version = found["schema_version"]
                require_readable(f"{file.name}: schema_version", version, SCHEMA_VERSION)
                self.releases += int(found["releases"])
                self.inverse_squares += float(found["inverse_squares"])
            except (OSError, ValueError, LookupError, TypeError) as error:
                problem = f"does not say what was released ({error})"
                remedy = "restore it from a copy; without it epsilon would be too small"
                raise ConfigError("privacy", str(file), problem, remedy) from error
        self._file = file
        self._write(file)

    def epsilon(self, delta: float, sensitivity: float = 1.0) -> float:
        """The least epsilon with that delta over all `ORDERS`, by proposition 12 of Canonne,
        Kamath and Steinke (2020); `sensitivity` in units of C."""
        rate: float = sensitivity * sensitivity * self.inverse_squares / 2
        if not rate or not math.isfinite(rate):
            return math.inf if rate else 0.0
        found: Iterator[float] = (
            rate * a + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1)
            for a in ORDERS
        )
        return max(min(found), 0.0)

    def of_replacement(self, delta: float) -> float:
        """Between any two contents of the site's data: the movements are at most 2 C apart."""
        return self.epsilon(delta, sensitivity=2.0)

    def _write(self, file: Path) -> None:
        text = json.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "releases": self.releases,
                "inverse_squares": self.inverse_squares,
            }
        )
        new = file.with_suffix(".new")
        try:
            new.write_text(text, encoding="utf-8")
            new.replace(file)
        except OSError as error:
            problem = f"cannot be written ({error.strerror or error})"
            remedy = "make room, or name another --state-dir"
            raise ConfigError("privacy", str(file), problem, remedy) from error


class Movement:
    """Clips the movements of one peer and adds the noise. With `seed` the noise follows from it, so
    that whoever has the run config can take it away again, and nothing counts as private; else
    it is drawn anew from the operating system for each release."""

    def __init__(self, config: PrivacyConfig, seed: Callable[[int], int] | None = None) -> None:
        assert config.clip is not None, "nothing to do"
        self.clip, self.multiplier = config.clip, config.noise_multiplier
        self.spent = Spent()
        self._seed = seed

    def release(self, before: Tensor, live: Tensor, step: int) -> None:
        """Put the released model into `live`, which has moved there from `before`; both of shape
        (d,). `before` is used up. A movement that is not finite counts as none."""
        self.spent.add(self.multiplier if self._seed is None else 0.0)
        movement = live.sub_(before)
        norm = float(torch.linalg.vector_norm(movement))
        if not math.isfinite(norm):
            movement.zero_()
        elif norm > self.clip:
            movement.mul_(self.clip / norm)
        if self.multiplier:
            generator = torch.Generator(live.device).manual_seed(self._draw(step))
            noise = torch.empty_like(live).normal_(generator=generator)
            movement.add_(noise, alpha=self.multiplier * self.clip)
        live.add_(before)

    def _draw(self, step: int) -> int:
        return secrets.randbits(63) if self._seed is None else self._seed(step)


def movement_of(
    config: PrivacyConfig, buffers: tuple[str, ...], seed: Callable[[int], int] | None
) -> Movement | None:
    """What the run wants done to movements; None for nothing. Raises ConfigError for a model with
    buffers that travel: with noise in them (such as variances below zero) it would not work."""
    if config.clip is None:
        return None
    if buffers:
        problem = f"the model has buffers that travel with it ({', '.join(buffers)[:80]})"
        remedy = "take layers without running statistics, such as GroupNorm for BatchNorm"
        raise ConfigError("privacy.clip", config.clip, problem, remedy)
    return Movement(config, seed)
