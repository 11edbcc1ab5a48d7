"""The network between processes on loopback, made of TCP proxies: it can be cut and it can stall.

Each process is reached through a proxy of its own, which finds out who has connected to it (by the
port that the connection comes from), so that whatever passes between two processes can be held up.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Collection

import psutil

CHUNK = 1 << 16


class Wires:
    """Proxies by the name of the process behind them. `pids` tells who runs under which id."""

    def __init__(self, pids: Callable[[], dict[int, str]]) -> None:
        self._pids = pids
        self._changed = threading.Condition()
        self._side: frozenset[str] = frozenset()  # parted from the rest; empty: nobody
        self._most: dict[tuple[str, str], int] = {}  # bytes from one process to one that called it
        self.stuck: set[tuple[str, str]] = set()  # those of which so much has passed
        self._ended = False
        self._listeners: dict[str, socket.socket] = {}
        self._targets: dict[str, tuple[str, int]] = {}
        self._threads: list[threading.Thread] = []
        self._open: dict[socket.socket, tuple[str, str]] = {}  # either end: who speaks with whom

    def port_for(self, name: str) -> int:
        """The port at which others reach that process, whatever its own."""
        if name not in self._listeners:
            listener = socket.create_server(("127.0.0.1", 0))
            self._listeners[name] = listener
            self._start(self._accept, name, listener)
        return int(self._listeners[name].getsockname()[1])

    def lead(self, name: str, port: int) -> None:
        """The process of that name listens at this port of its own."""
        self._targets[name] = ("127.0.0.1", port)

    def direct(self, name: str) -> str:
        """Where that process itself listens, whoever is parted from it."""
        host, port = self._targets[name]
        return f"{host}:{port}"

    def part(self, side: Collection[str]) -> None:
        """From now on nothing gets through between these and the rest: packets vanish."""
        with self._changed:
            self._side = frozenset(side)
            self._changed.notify_all()

    def heal(self) -> None:
        """All is well again, and what was under way goes on."""
        self.part(())

    def hold_after(self, size: int, source: str, to: str) -> None:
        """Of what `source` answers on each connection that `to` opens, so many bytes get through,
        and then no more."""
        with self._changed:
            self._most[source, to] = size

    def cut(self, name: str) -> None:
        """Break all connections of a process, once."""
        with self._changed:
            cut = [end for end, between in self._open.items() if name in between]
        for end in cut:
            _shut(end)

    def close(self) -> None:
        """Take all down."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            ends = [*self._listeners.values(), *self._open]
        for end in ends:
            _shut(end)
        for thread in self._threads:
            thread.join()
        for listener in self._listeners.values():
            listener.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        thread.start()

    def _accept(self, name: str, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self._start(self._connect, name, near)

    def _connect(self, name: str, near: socket.socket) -> None:
        between = (self._caller(near.getpeername()[1]), name)
        if not self._await_passage(between):
            near.close()
            return
        try:
            far = socket.create_connection(self._targets[name], timeout=5.0)
        except (OSError, KeyError):
            near.close()
            return
        far.settimeout(None)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._changed:
            self._open |= {near: between, far: between}
        most = self._most.get((name, between[0]))
        back = threading.Thread(target=self._pump, args=(far, near, between, most), daemon=True)
        back.start()
        self._pump(near, far, between)
        back.join()
        with self._changed:
            del self._open[near], self._open[far]
        near.close()
        far.close()

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        between: tuple[str, str],
        most: int | None = None,
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while (data := source.recv(CHUNK)) and self._await_passage(between):
                passed += len(data)
                if most is not None and passed > most:
                    self._hold(between[::-1])
                    break
                sink.sendall(data)
        self._await_passage(between)  # the end of a connection does not get through either
        _shut(source)
        _shut(sink)

    def _hold(self, edge: tuple[str, str]) -> None:
        """Until all is over, or the connection is cut."""
        with self._changed:
            self.stuck.add(edge)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or edge not in self._most)

    def release(self, source: str, to: str) -> None:
        """Hold up no more what `hold_after` did; connections that were held are broken."""
        with self._changed:
            del self._most[source, to]
            self._changed.notify_all()

    def until_stuck(self, source: str, to: str, patience_s: float) -> None:
        """Wait until so much has passed between them."""
        with self._changed:
            found = self._changed.wait_for(lambda: (source, to) in self.stuck, patience_s)
        assert found, f"{to} has not had so much from {source}"

    def _await_passage(self, between: tuple[str, str]) -> bool:
        """Hold up what would pass between two sides. False: all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._parts(between))
            return not self._ended

    def _parts(self, between: tuple[str, str]) -> bool:
        a, b = between
        return bool(self._side) and (a in self._side) != (b in self._side)

    def _caller(self, port: int) -> str:
        for pid, name in self._pids().items():
            with contextlib.suppress(psutil.Error):
                connections = psutil.Process(pid).net_connections("tcp")
                if any(one.laddr.port == port for one in connections):
                    return name
        return "somebody"


def free_port() -> int:
    """One that nobody uses now, and that the system gives to nobody who asks for any."""
    while True:
        with contextlib.suppress(OSError):
            port = random.randrange(12_000, 30_000)
            with socket.create_server(("127.0.0.1", port)):
                return port


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
