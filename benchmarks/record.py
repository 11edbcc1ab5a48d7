"""What a benchmark writes down: what it measured, and when, where and by which releases."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from peer.manifest import hardware, versions


class Record:
    """Of one run of a benchmark, made before it measures anything: the load of the machine by then
    is others' work."""

    def __init__(self) -> None:
        self._load_before = os.getloadavg()[0]

    def write(self, path: Path, found: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
        """Write what was found as JSON; returns what stands beside it, `settings` among it."""
        about = {
            "date": date.today().isoformat(),
            "load_before": self._load_before,  # above 0: other work took part of the machine
            **settings,
            "hardware": hardware(),
            "versions": versions(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, **found}, indent=2) + "\n")
        return about
