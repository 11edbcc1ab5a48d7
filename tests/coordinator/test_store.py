"""What the coordinator remembers through a restart, and which files it refuses."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.etcd_store import EtcdStore
from coordinator.store import Memory, Store
from relayswarm.config import parse
from relayswarm.errors import ConfigError

CONFIG = parse("run_id = 'one'\npeers = 4")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coordinator.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store(path)) as opened:
        yield opened


def test_a_new_run_begins_with_the_term_given(store: Store) -> None:
    assert store.stored_config() is None
    assert store.open_run(CONFIG, first_term=17) == Memory(17, 0, 0)


def test_an_epoch_survives_a_restart(path: Path) -> None:
    with closing(Store(path)) as before:
        before.open_run(CONFIG, first_term=17)
        before.save(Memory(17, 3, 2**64 - 1))
    with closing(Store(path)) as after:
        assert after.stored_config() == CONFIG
        assert after.open_run(CONFIG, first_term=99) == Memory(17, 3, 2**64 - 1)


KILLED_AT = """
import os, signal, sqlite3, sys
from pathlib import Path
from coordinator.store import Memory, Store

where, statement = sys.argv[1:]

def at(begun):
    if statement in begun:
        os.kill(os.getpid(), signal.SIGKILL)

connect = sqlite3.connect

def traced(*args, **named):
    connection = connect(*args, **named)
    connection.set_trace_callback(at)
    return connection

sqlite3.connect = traced
Store(Path(where)).save(Memory(17, 4, 7, 2e9, 90))
"""


@pytest.mark.parametrize("statement", ["INTO stop", "COMMIT"])
def test_who_is_killed_while_saving_leaves_the_epoch_before(path: Path, statement: str) -> None:
    """And what belongs to it: under a stop that is older, or none, the run would go on past the
    step before which its peers end."""
    saved = Memory(17, 3, 5, 1e9, 80)
    with closing(Store(path)) as before:
        before.open_run(CONFIG, first_term=17)
        before.save(saved)
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, path, statement], check=False)
    assert killed.returncode == -signal.SIGKILL
    with closing(Store(path)) as after:
        assert after.open_run(CONFIG, first_term=99) == saved


def test_an_epoch_that_cannot_be_saved_leaves_the_one_before(path: Path) -> None:
    saved = Memory(17, 3, 5, 1e9, 80)
    with closing(Store(path)) as before:
        before.open_run(CONFIG, first_term=17)
        before.save(saved)
    with closing(sqlite3.connect(path)) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON stop BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
    with closing(Store(path)) as store:
        with pytest.raises(ConfigError, match="no room"):
            store.save(Memory(17, 4, 7, 2e9, 90))
        assert store.open_run(CONFIG, first_term=99) == saved


def test_memory_forgets() -> None:
    with closing(Store()) as before:
        before.open_run(CONFIG, first_term=17)
        before.save(Memory(17, 3, 5))
    with closing(Store()) as after:
        assert after.open_run(CONFIG, first_term=99) == Memory(99, 0, 0)


def test_another_run_is_refused(store: Store, path: Path) -> None:
    store.open_run(CONFIG, 1)
    with pytest.raises(ConfigError, match=r"holds the run 'one', not 'two'.*--store") as caught:
        store.open_run(parse("run_id = 'two'"), 1)
    assert str(path) in str(caught.value)


def test_the_same_run_with_another_config_is_refused_by_name(store: Store) -> None:
    store.open_run(CONFIG, 1)
    changed = parse(CONFIG.to_toml(), ["optimizer.lr=0.5"])
    with pytest.raises(ConfigError, match=r"optimizer\.lr = None, not 0\.5"):
        store.open_run(changed, 1)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*unable to open"):
        Store(tmp_path / "nowhere" / "store.sqlite")


def test_a_file_that_is_no_store_is_refused(path: Path) -> None:
    path.write_text("This is a letter to my mother, and no database at all." * 20)
    with pytest.raises(ConfigError, match="not a database"):
        Store(path)


def test_a_store_in_use_is_refused(store: Store, path: Path) -> None:
    store.open_run(CONFIG, 1)
    with pytest.raises(ConfigError, match="used by no other coordinator"):
        Store(path)


def test_a_write_that_fails_says_so(path: Path) -> None:
    store = Store(path)
    store.open_run(CONFIG, 1)
    store.close()
    with pytest.raises(ConfigError, match="cannot be used"):
        store.save(Memory(1, 1, 1))


def test_an_etcd_needs_its_client_and_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it takes a real one: `make test-etcd`."""
    monkeypatch.setitem(sys.modules, "aetcd", None)
    with pytest.raises(ConfigError, match=r"relayswarm\[etcd\]"):
        EtcdStore("etcd://127.0.0.1:2379")
    for url in ("etcd://127.0.0.1", "etcd://", "etcd://host:port/run"):
        with pytest.raises(ConfigError, match="--store"):
            EtcdStore(url)
