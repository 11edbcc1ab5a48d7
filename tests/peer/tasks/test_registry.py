"""Finding tasks by name."""

from importlib.metadata import EntryPoint

import pytest

from peer.tasks import registry
from peer.tasks.digits import Digits
from peer.tasks.quadratics import Quadratics
from relayswarm.config import TaskConfig
from relayswarm.errors import ConfigError


def offer(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    entry = EntryPoint(name=name, value=value, group=registry.OFFERS.group)

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == registry.OFFERS.group
        return [entry] if name in (None, entry.name) else []

    monkeypatch.setattr("peer.offers.entry_points", entry_points)


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_built_in_tasks_are_found_under_their_own_name(name: str) -> None:
    assert registry.load_task(TaskConfig(name=name)).name == name


def test_options_reach_the_task() -> None:
    task = registry.load_task(TaskConfig(name="quadratics", options={"dimension": 3}))
    assert isinstance(task, Quadratics)
    assert task.options.dimension == 3


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.load_task(TaskConfig(name="fashion_mnist"))
    assert caught.value.field == "task.name"
    assert "did you mean 'fashion-mnist'? known: char-lm, cifar-10, digits, " in str(caught.value)


def test_an_installed_package_can_offer_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "theirs", "peer.tasks.digits:Digits")
    assert type(registry.load_task(TaskConfig(name="theirs"))) is Digits


def test_built_in_names_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "digits", "peer.tasks.quadratics:Quadratics")
    assert type(registry.load_task(TaskConfig(name="digits"))) is Digits


@pytest.mark.parametrize("value", ["no.such.module:X", "peer.tasks.digits:NoSuch"])
def test_an_offer_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    offer(monkeypatch, "theirs", value)
    with pytest.raises(ConfigError, match="cannot be imported from"):
        registry.load_task(TaskConfig(name="theirs"))


def test_an_offer_that_is_no_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "theirs", "pathlib:Path")
    with pytest.raises(ConfigError, match="not a task"):
        registry.load_task(TaskConfig(name="theirs"))
