"""The coordinator's memory in etcd, and which of several coordinators leads.

What belongs here: all that knows etcd. The leader is who holds the key `leader` by a lease of
`TTL_S`, which it keeps alive; whatever it writes is written only if it still does, so that one that
was thought dead and comes back cannot publish an epoch. The client library speaks asyncio: it has
an event loop in a thread of its own here.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from coordinator.store import Memory, check_same
from relayswarm.config import RunConfig, parse
from relayswarm.errors import ConfigError, LeadershipError
from relayswarm.net.address import split_address

TTL_S = 2
"""Of the leader's lease; etcd grants none that is shorter. After as long without a word from etcd a
leader takes it that another one leads."""
REFRESH_S, LOOK_S = 0.4, 0.1
CALL_TIMEOUT_S = 1.5

T = TypeVar("T")


class EtcdStore:
    """The memory of one run in etcd. Any thread may call it; `lead` before all that writes."""

    is_shared: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        """`etcd://HOST:PORT`, and perhaps `/NAME` to tell runs in one etcd apart; nothing is called
        yet. Raises ConfigError."""
        parts = urlsplit(url)
        split_address(parts.netloc, "--store")
        self.url = url
        prefix = f"relayswarm/{parts.path.strip('/') or 'run'}"
        self._leader_key, self._run_key = f"{prefix}/leader".encode(), f"{prefix}/run".encode()
        self._me = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}".encode()
        self._client = self._connect(parts.hostname or "", parts.port or 0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="etcd", daemon=True)
        self._lease: Any = None
        self._keeper: threading.Thread | None = None
        self._closed = threading.Event()
        self._thread.start()

    def _connect(self, host: str, port: int) -> Any:
        try:
            import aetcd  # of the extra `etcd`
        except ImportError as error:
            problem, remedy = "needs the package aetcd", "pip install 'relayswarm[etcd]'"
            raise ConfigError("--store", self.url, problem, remedy) from error
        self._error: type[Exception] = aetcd.ClientError
        return aetcd.Client(host=host, port=port, timeout=CALL_TIMEOUT_S)

    # --- the lead ----------------------------------------------------------------------------

    def lead(self, is_stopped: Callable[[], bool], on_lost: Callable[[Exception], None]) -> bool:
        """Wait until this coordinator leads; False if it was stopped before. `on_lost` is called,
        from another thread, when it does not lead any more. Raises ConfigError if etcd cannot be
        reached at first."""
        self._ask(self._client.get(self._leader_key))
        while not is_stopped():
            if self._campaign():
                self._keeper = threading.Thread(
                    target=self._keep, args=(on_lost,), name="leader", daemon=True
                )
                self._keeper.start()
                return True
            time.sleep(LOOK_S)
        return False

    def _campaign(self) -> bool:
        """Take the lead if nobody has it. An etcd that is away for a while is waited for."""
        try:
            if self._call(self._client.get(self._leader_key)) is not None:
                return False
            began = time.monotonic()
            lease = self._call(self._client.lease(TTL_S))
            transactions = self._client.transactions
            won, _ = self._call(
                self._client.transaction(
                    compare=[transactions.create(self._leader_key) == 0],
                    success=[transactions.put(self._leader_key, self._me, lease)],
                    failure=[],
                )
            )
            if not won:
                self._call(lease.revoke())
                return False
        except (self._error, TimeoutError):
            return False
        self._lease, self._refreshed = lease, began
        return True

    def _keep(self, on_lost: Callable[[Exception], None]) -> None:
        """Keep the lease alive; a word that comes too late is as good as none."""
        while not self._closed.wait(REFRESH_S):
            began = time.monotonic()
            try:
                left_s = self._call(self._lease.refresh()).TTL
            except (self._error, TimeoutError):
                left_s = TTL_S  # perhaps it is only etcd that is away
            else:
                self._refreshed = began if left_s > 0 else self._refreshed
            if left_s <= 0 or time.monotonic() - self._refreshed >= TTL_S:
                on_lost(LeadershipError(self._lost()))
                return

    def _lost(self) -> str:
        return (
            f"--store = {self.url!r}: this coordinator leads no more, for it has not kept its "
            "lease alive; start it again to stand by"
        )

    # --- the memory --------------------------------------------------------------------------

    def stored_config(self) -> RunConfig | None:
        """The config of the run that etcd holds; None if there is none. Raises ConfigError."""
        run = self._run()
        return parse(run["config"], source=f"run config in {self.url}") if run else None

    def open_run(self, config: RunConfig, first_term: int) -> Memory:
        """As `Store.open_run`."""
        run = self._run()
        if run is None:
            self._write(config.run_id, config.to_toml(), Memory(first_term, 0, 0))
            return Memory(first_term, 0, 0)
        check_same(parse(run["config"], source=f"run config in {self.url}"), config, self.url)
        self._opened = (run["run_id"], run["config"])
        ends = run.get("began_at", 0.0), run.get("stop_step", 0)
        return Memory(run["term"], run["number"], run["fingerprint"], *ends)

    def save(self, memory: Memory) -> None:
        """As `Store.save`. Raises LeadershipError if another coordinator leads."""
        self._write(*self._opened, memory)

    def close(self) -> None:
        """Hand the lead over, if it is ours."""
        self._closed.set()
        if self._keeper:
            self._keeper.join()
        try:
            if self._lease:
                self._call(self._lease.revoke())
            self._call(self._client.close())
        except (self._error, TimeoutError):
            pass  # it runs out
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> dict[str, Any] | None:
        found = self._ask(self._client.get(self._run_key))
        if found is None:
            return None
        try:
            run = json.loads(found.value)
            assert {"run_id", "config", "term", "number", "fingerprint"} <= run.keys()
        except (ValueError, AssertionError, AttributeError) as error:
            problem, remedy = (
                "holds something else than a run",
                "give another name: etcd://.../NAME",
            )
            raise ConfigError("--store", self.url, problem, remedy) from error
        return dict(run)

    def _write(self, run_id: str, config: str, memory: Memory) -> None:
        self._opened = (run_id, config)
        run = {
            "run_id": run_id,
            "config": config,
            "term": memory.term,
            "number": memory.number,
            "fingerprint": memory.fingerprint,
            "began_at": memory.began_at,
            "stop_step": memory.stop_step,
        }
        transactions = self._client.transactions
        written, _ = self._ask(
            self._client.transaction(
                compare=[transactions.value(self._leader_key) == self._me],
                success=[transactions.put(self._run_key, json.dumps(run).encode())],
                failure=[],
            )
        )
        if not written:
            raise LeadershipError(self._lost())

    def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return self._call(call)
        except (self._error, TimeoutError) as error:
            problem = f"etcd does not answer ({str(error) or 'no word from it'})"
            remedy = "check the address, and that etcd is running"
            raise ConfigError("--store", self.url, problem, remedy) from error

    def _call(self, call: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result(2 * CALL_TIMEOUT_S)
        except TimeoutError:
            future.cancel()
            raise
