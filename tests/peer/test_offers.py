"""Which of an installation's offers another machine may choose."""

from importlib.metadata import EntryPoint

import pytest

from peer.offers import Offers
from relayswarm.errors import ConfigError

OFFERS = Offers(group="relayswarm.tasks", field="task.name", noun="task")


@pytest.fixture(autouse=True)
def _offered(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint(name, "no.such:thing", OFFERS.group) for name in ("theirs", "digits")]
    monkeypatch.setattr("peer.offers.entry_points", lambda group: entries)  # noqa: ARG005


@pytest.mark.parametrize(
    ("name", "allowed"), [("digits", ()), ("theirs", ("theirs",)), ("theirs", ("others", "theirs"))]
)
def test_built_in_and_allowed_names_may_be_chosen(name: str, allowed: tuple[str, ...]) -> None:
    OFFERS.require_allowed(name, {"digits"}, allowed, "--allow-task")


@pytest.mark.parametrize("allowed", [(), ("others",), ("Theirs", "their", "")])
def test_other_packages_may_not(allowed: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"'theirs'.*not been allowed.*--allow-task theirs"):
        OFFERS.require_allowed("theirs", {"digits"}, allowed, "--allow-task")


def test_a_name_that_nobody_offers_is_unknown_even_if_allowed() -> None:
    with pytest.raises(ConfigError, match=r"unknown task; did you mean 'digits'\?"):
        OFFERS.require_allowed("digit", {"digits"}, ("digit",), "--allow-task")
