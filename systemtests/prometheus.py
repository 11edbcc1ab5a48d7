"""A Prometheus to ask: what its HTTP API answers, and waiting for an answer that one wants."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

Labels = dict[str, str]


class Prometheus:
    """The API of a server at `root`, such as http://127.0.0.1:9090."""

    def __init__(self, root: str) -> None:
        self.root = root

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; an expression that cannot be is an error that names it."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.root}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """Labels and present values."""
        result = self.get("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in result]

    def range(
        self, expression: str, seconds: float, step_s: float
    ) -> list[tuple[Labels, list[Any]]]:
        """Labels and values of the last seconds."""
        now = time.time()
        spans = {"start": f"{now - seconds}", "end": f"{now}", "step": f"{step_s}"}
        result = self.get("query_range", query=expression, **spans)["result"]
        return [(one["metric"], one["values"]) for one in result]

    def label_values(self, series: str, label: str) -> list[str]:
        """As Grafana's `label_values(series, label)`."""
        answer: list[str] = self.get(f"label/{label}/values", **{"match[]": series})
        return answer

    def targets(self) -> dict[str, str]:
        """Health of each target, by the address that is scraped."""
        active = self.get("targets", state="active")["activeTargets"]
        return {one["labels"]["instance"]: one["health"] for one in active}

    def alerts(self) -> dict[str, str]:
        """State of each alert that is pending or firing, by name."""
        return {one["labels"]["alertname"]: one["state"] for one in self.get("alerts")["alerts"]}


def until(condition: Callable[[], Any], what: str, patience_s: float, pause_s: float = 0.5) -> Any:
    """Ask until there is an answer, and return it. Who is not there yet gives no answer."""
    deadline = time.monotonic() + patience_s
    last: object = None
    while True:
        try:
            if answer := condition():
                return answer
        except OSError as error:
            last = error
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain until {what} ({last})"
        time.sleep(pause_s)  # between two questions
