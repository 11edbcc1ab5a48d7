"""Starts `relayswarm` commands by forking a process that has imported everything already.

Importing torch costs seconds of processor time, a fork milliseconds. Started by `conftest.py` with
one end of a socket. A request is {"arguments": [...], "path": [...]} (folders for the front of
`sys.path`), with two file descriptors, for standard output and error. Answers are lines of JSON:
{"started": pid}, {"ended": pid, "exit_code": code}. When the socket is closed, all children are
killed.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import sys
import threading
from importlib import import_module

PRELOADED = (
    "coordinator.cli",
    "coordinator.runner",
    "coordinator.draw",
    "grpc_reflection.v1alpha.reflection",
    "peer.cli",
    "peer.commands",
    "peer.service",
    "peer.tasks.digits",
    "peer.tasks.quadratics",
    "torch._dynamo",  # which torch imports when the first optimizer is made
)


def serve(control: socket.socket) -> list[str] | None:
    """Fork on request. Returns in each child, with its arguments; None once all is over."""
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)  # the wake-up is what counts
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    children: set[int] = set()
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if woken in ready:
            woken.recv(4096)
            reap(control, children)
        if control not in ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 2)
        if not request:
            break
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for opened in (selector, control, woken, wake):
                opened.close()
            become(*descriptors)
            wanted = json.loads(request)
            sys.path[:0] = wanted["path"]
            return [str(argument) for argument in wanted["arguments"]]
        children.add(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        tell(control, started=pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return None


def become(stdout: int, stderr: int) -> None:
    """In a child: take up its own streams, and a session of its own."""
    os.setsid()
    for given, standard in ((stdout, 1), (stderr, 2)):
        os.dup2(given, standard)
        os.close(given)


def reap(control: socket.socket, children: set[int]) -> None:
    """Report the children that have ended."""
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children.discard(pid)
            tell(control, ended=pid, exit_code=os.waitstatus_to_exitcode(status))


def tell(control: socket.socket, **what: int) -> None:
    control.sendall(json.dumps(what).encode() + b"\n")


def main() -> None:
    for module in PRELOADED:
        import_module(module)
    assert threading.active_count() == 1, "a fork would lose threads"
    gc.collect()
    gc.freeze()
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        run(arguments)


def run(arguments: list[str]) -> None:
    """Be `relayswarm`; but do not take apart, at the end, all that was imported before the fork."""
    try:
        import_module("peer.cli").main(arguments)
    except SystemExit as end:
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.main_thread():
                thread.join()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))


if __name__ == "__main__":
    main()
