"""How fast messages travel between two peers on one machine, beside what else there is.

    python benchmarks/transport.py             all of it, in under 5 minutes
    python benchmarks/transport.py --quick     a few turns, without the wire formats
    python benchmarks/transport.py --quick --hivemind PYTHON    beside hivemind's averager, too

Two processes on loopback hand each other models of 1, 10 and 100 MB, one way and both ways at once.
A message begins with a vector in one process, and ends when its sender knows that it is whole in
the other's memory; then the next one begins.

tcp       sockets: sendall, recv_into a vector, one byte back
gloo      torch.distributed: isend, irecv into a vector, one element back
grpc      grpcio alone, which relaying cannot outrun: the same bytes again and again, in parts of
          1 MiB, let go as they come in
relay     what peer daemons do: a sum of a register and a kept message is formed while it streams
          through the peer's outbox, and taken by its server into a buffer, checked and handed over;
          in each wire format (with float64 the model is of that type, too)
hivemind  its averager (`hivemind_averager.py`), float32, both ways, the largest size. PYTHON is the
          interpreter of an environment that has it; its processor seconds are not known

Methods take turns, figures are medians over the turns. Rates are in GB of model (float32 elements
where the format is a smaller one) a second and direction. Processor seconds are those of both
processes, for each GB of model that went one way. Prints a table, and writes JSON and a plot
(`--output`).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grpc
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.record import Record
from peer.algorithms.core import LIVE, Epoch, Head, Kind, Lin, Message, Reg, Role, Verdict
from peer.codec import Format, bytes_of
from peer.codec.edges import LatticeSetting
from peer.process import compute_alone, keep_freed_memory
from peer.registers import Registers
from peer.transport.client import Outbox
from peer.transport.contract import Contract, PeerState, Snapshot
from peer.transport.server import PeerServer
from peer.transport.wire import MESSAGE_LIMIT, chunk_size
from relayswarm.net.gate import Denial

Row = dict[str, Any]

MEGABYTE = 10**6
SIZES = {1: 40, 10: 10, 100: 2}  # of models in MB: messages in a turn
TURNS, QUICK_TURNS = 7, 3
FORMATS = ("float32", "bfloat16", "float16", "float64", "lattice")
PATIENCE_S = 60.0
EPOCH = Epoch(1, 1, 1)
BASE = "tcp"
HIVEMIND, ROUNDS = "hivemind", 4
LARGE = (("grpc.max_receive_message_length", MESSAGE_LIMIT),)


class Case(NamedTuple):
    """What is measured in one turn."""

    method: str
    megabytes: int
    both: bool  # ways

    @property
    def elements(self) -> int:
        return self.megabytes * MEGABYTE // dtype_of(self.method).itemsize

    @property
    def messages(self) -> int:
        return SIZES[self.megabytes]


class Spent(NamedTuple):
    """By one process in a turn, seconds."""

    clock: float
    processor: float


class Method(Protocol):
    """One end of a pair that hands vectors to each other; both ends are told to do the same."""

    def send(self) -> None:
        """One message; returns when it is known to be there."""

    def receive(self) -> None:
        """The other end's message."""

    def swap(self) -> None:
        """Both at once."""


class Site(NamedTuple):
    """Where an end is: its number and a line to the other end's, by name of what is said."""

    rank: int
    tell: Callable[[Any], None]
    hear: Callable[[], Any]
    sockets: tuple[socket.socket, socket.socket]  # to send and to receive
    store: str  # a file's name, for gloo


def dtype_of(method: str) -> torch.dtype:
    return torch.float64 if method == "relay float64" else torch.float32


# --- methods ----------------------------------------------------------------------------------


class Tcp:
    """Sockets, one for each direction."""

    def __init__(self, site: Site, elements: int) -> None:
        self._out, self._in = site.sockets
        self._vector = bytes_of(torch.randn(elements))
        self._received = bytes_of(torch.empty(elements))

    def send(self) -> None:
        self._out.sendall(self._vector)
        self._out.recv(1)

    def receive(self) -> None:
        rest = self._received
        while rest:
            rest = rest[self._in.recv_into(rest) :]
        self._in.sendall(b"!")

    def swap(self) -> None:
        sender = threading.Thread(target=self.send)
        sender.start()
        self.receive()
        sender.join()


class Gloo:
    """torch.distributed on the CPU."""

    def __init__(self, site: Site, elements: int) -> None:
        if not dist.is_initialized():
            dist.init_process_group(
                "gloo", init_method=f"file://{site.store}", rank=site.rank, world_size=2
            )
        self._other = 1 - site.rank
        self._vector, self._received = torch.randn(elements), torch.empty(elements)
        self._said, self._heard = torch.ones(1), torch.ones(1)

    def send(self) -> None:
        dist.send(self._vector, self._other)
        dist.recv(self._heard, self._other)

    def receive(self) -> None:
        dist.recv(self._received, self._other)
        dist.send(self._said, self._other)

    def swap(self) -> None:
        work = [dist.isend(self._vector, self._other), dist.irecv(self._received, self._other)]
        for one in work:
            assert one is not None
            one.wait()
        work = [dist.isend(self._said, self._other), dist.irecv(self._heard, self._other)]
        for one in work:
            assert one is not None
            one.wait()


class Grpc:
    """grpcio and nothing else: the parts of a stream, as large as in relaying, are ready, and let
    go as they come in."""

    def __init__(self, site: Site, elements: int) -> None:
        size = chunk_size(4 * elements)
        whole, rest = divmod(4 * elements, size)
        self._parts = [bytes(size)] * whole + [bytes(rest)] * (rest > 0)
        self._received: queue.SimpleQueue[int] = queue.SimpleQueue()
        handler: Any = grpc.stream_unary_rpc_method_handler(self._take)
        self._server = grpc.server(ThreadPoolExecutor(2), options=LARGE)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("bare", {"Relay": handler}),)
        )
        site.tell(self._server.add_insecure_port("127.0.0.1:0"))
        self._server.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{site.hear()}", options=LARGE)
        self._call: Any = self._channel.stream_unary("/bare/Relay")

    def _take(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> bytes:  # noqa: ARG002
        self._received.put(sum(len(part) for part in parts))
        return b"!"

    def send(self) -> None:
        self._call(iter(self._parts))

    def receive(self) -> None:
        assert self._received.get(timeout=PATIENCE_S) == sum(map(len, self._parts))

    def swap(self) -> None:
        answer = self._call.future(iter(self._parts))
        self.receive()
        answer.result()


class Relay:
    """A peer's registers, outbox and server. As in a daemon the last message is kept, while the
    next one comes in."""

    def __init__(self, site: Site, elements: int, wire_format: str) -> None:
        dtype = torch.float64 if wire_format == "float64" else torch.float32
        self._sent: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._received: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._kept: tuple[Tensor, ...] = ()
        self._step = 0
        contract = Contract(
            run_id="benchmark",
            fingerprint=1,
            elements=elements,
            dtype=dtype,
            wire_format=None if wire_format == "lattice" else Format(wire_format),
            lattice=LatticeSetting() if wire_format == "lattice" else None,
        )
        self._registers = self._make_registers(elements, dtype)
        self._relayed = Message(self._head(), 0, torch.randn(elements, dtype=dtype))
        self._me = f"peer-{site.rank}"
        self._server = PeerServer(self, contract, "127.0.0.1:0")
        self._server.start()
        self._outbox = Outbox(self._me, contract, None, self)
        site.tell(self._server.address)
        self._outbox.set_addresses({"other": site.hear()})

    def _make_registers(self, elements: int, dtype: torch.dtype) -> Registers:
        """The live model and one that it moves to and from, as far as training moves it."""
        registers = Registers(torch.randn(elements, dtype=dtype), {"moved": Role.MODEL}, elements)
        step = torch.randn(elements, dtype=dtype) / 100
        registers["moved"].copy_(registers[LIVE] + step)
        return registers

    def _head(self) -> Head:
        return Head("peer", 1, EPOCH, self._step, Kind.RELAY, count=2)

    def send(self) -> None:
        self._post()
        self._await_sent()

    def receive(self) -> None:
        self._received.get(timeout=PATIENCE_S)

    def swap(self) -> None:
        self._post()
        self.receive()
        self._await_sent()

    def _post(self) -> None:
        self._step += 1
        own = Reg(("moved", LIVE)[self._step % 2])
        lin = Lin(((1, own), (1, self._relayed)))
        head = self._head()
        self._outbox.send("other", head, self._registers.outgoing((lin,), head))

    def _await_sent(self) -> None:
        news = self._sent.get(timeout=PATIENCE_S)
        assert not news, news

    # What outbox and server report.

    def sent(self, to: str, head: Head, verdict: Verdict | None) -> None:  # noqa: ARG002
        self._sent.put("" if verdict is Verdict.ACCEPTED else f"not sent: {verdict}")

    def received(self, head: Head, vectors: tuple[Tensor, ...]) -> Verdict:  # noqa: ARG002
        self._kept = vectors
        self._received.put("")
        return Verdict.ACCEPTED

    def admit(self, head: Head) -> Verdict:  # noqa: ARG002
        return Verdict.ACCEPTED

    def unreachable(self, peer: str) -> None:
        self._sent.put(f"{peer} is unreachable")

    def broken(self, head: Head) -> None:
        self._sent.put(f"{head} is broken")

    def retried(self, peer: str, reason: str) -> None: ...
    def bytes_out(self, count: int, wire_format: str) -> None: ...
    def bytes_in(self, count: int) -> None: ...
    def lost(self, head: Head) -> None: ...
    def refused(self, verdict: Verdict, head: Head) -> None: ...
    def denied(self, denial: Denial, text: str) -> None: ...

    def state(self) -> PeerState:
        return PeerState(self._me, 1, EPOCH, self._step, "training")

    def snapshot(self) -> Snapshot:
        raise AssertionError("nobody asks for it")

    def copy(self) -> Tensor:
        raise AssertionError("there are no pairs")


def build(method: str, site: Site, elements: int) -> Method:
    match method.split():
        case ["tcp"]:
            return Tcp(site, elements)
        case ["gloo"]:
            return Gloo(site, elements)
        case ["grpc"]:
            return Grpc(site, elements)
        case ["relay", wire_format]:
            return Relay(site, elements, wire_format)
    raise AssertionError(method)


# --- the two processes ------------------------------------------------------------------------


def work(
    rank: int,
    orders: Connection,
    other: Connection,
    sockets: tuple[socket.socket, socket.socket],
    store: str,
) -> None:
    """One end: does what it is ordered, until the line is closed."""
    keep_freed_memory()
    compute_alone()  # as a daemon's core thread does
    site = Site(rank, other.send, other.recv, sockets, store)
    ends: dict[tuple[str, int], Method] = {}
    while (case := orders.recv()) is not None:
        key = (case.method, case.elements)
        if key not in ends:
            ends[key] = build(case.method, site, case.elements)
            run_once(ends[key], case, site, 3)  # until connections and the lattice are in swing
        orders.send(run_once(ends[key], case, site, case.messages))


def run_once(end: Method, case: Case, site: Site, count: int) -> Spent:
    act = end.swap if case.both else (end.send, end.receive)[site.rank]
    site.tell("ready")
    site.hear()
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        act()
    spent = Spent(time.perf_counter() - clock, time.process_time() - processor)
    site.tell("done")
    site.hear()
    return spent


class Pair:
    """Both ends, each in a process of its own. Leaving it as a context ends them."""

    def __init__(self, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        store = stack.enter_context(tempfile.TemporaryDirectory()) + "/gloo"
        between = context.Pipe()
        there, back = connected(), connected()
        sockets = ((there[0], back[1]), (back[0], there[1]))
        self._lines = []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=work, args=(rank, theirs, between[rank], sockets[rank], store), daemon=True
            )
            process.start()
            self._lines.append(ours)
            stack.callback(process.join, PATIENCE_S)
            stack.callback(ours.send, None)

    def run(self, case: Case) -> list[Spent]:
        """One turn; what each end spent."""
        for line in self._lines:
            line.send(case)
        return [line.recv() for line in self._lines]


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    for one in (client, accepted):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, accepted


# --- measuring --------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-transport"))
    parser.add_argument("--quick", action="store_true", help="a few turns of float32 alone")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="MB")
    parser.add_argument("--turns", type=int)
    parser.add_argument("--hivemind", metavar="PYTHON", help="an interpreter that has hivemind")
    arguments = parser.parse_args()
    record = Record()
    began = time.perf_counter()
    formats = FORMATS[:1] if arguments.quick else FORMATS
    methods = [BASE, "gloo", "grpc", *(f"relay {name}" for name in formats)]
    turns = arguments.turns or (QUICK_TURNS if arguments.quick else TURNS)
    rows = measure(methods, arguments.sizes, turns, arguments.hivemind)
    record.write(
        arguments.output / "transport.json",
        {"rows": rows},
        seconds=time.perf_counter() - began,
        turns=turns,
    )
    plot(rows, arguments.output / "transport.png")
    print_table(rows)


def measure(
    methods: Sequence[str], sizes: Sequence[int], turns: int, python: str | None = None
) -> list[Row]:
    """A row for each case; with `python` hivemind is one of the methods."""
    rows = []
    with ExitStack() as stack:
        pair = Pair(stack)
        for megabytes in sizes:
            for both in (False, True):
                cases = [Case(method, megabytes, both) for method in methods]
                if python and both and megabytes == max(sizes):
                    cases.append(Case(HIVEMIND, megabytes, both))
                rows += compare(cases, turns, lambda case: run(pair, case, python))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return rows


def run(pair: Pair, case: Case, python: str | None) -> list[Spent]:
    """One turn of whatever method."""
    if case.method != HIVEMIND:
        return pair.run(case)
    script = Path(__file__).parent / "hivemind_averager.py"
    command = [python or sys.executable, str(script), str(case.megabytes), str(ROUNDS)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate = float(printed.split()[0])  # GB/s
    return [Spent(case.megabytes / 1000 * case.messages / rate, math.nan)]


def compare(cases: Sequence[Case], turns: int, run: Callable[[Case], Sequence[Spent]]) -> list[Row]:
    """Cases take turns."""
    rates: defaultdict[Case, list[float]] = defaultdict(list)
    processor: defaultdict[Case, list[float]] = defaultdict(list)
    for _ in range(turns):
        for case in cases:
            spent = run(case)
            gigabytes = case.megabytes * case.messages / 1000
            rates[case].append(gigabytes / max(one.clock for one in spent))
            both = gigabytes * (2 if case.both else 1)
            processor[case].append(sum(one.processor for one in spent) / both)
    base = rates[cases[0]]
    return [
        {
            "method": case.method,
            "megabytes": case.megabytes,
            "both_ways": case.both,
            "gigabytes_per_s": statistics.median(rates[case]),
            "ratio_to_tcp": statistics.median(
                a / b for a, b in zip(rates[case], base, strict=True)
            ),
            "processor_s_per_gigabyte": known(statistics.median(processor[case])),
            "all_gigabytes_per_s": rates[case],
        }
        for case in cases
    ]


def known(figure: float) -> float | None:
    """None for what JSON has no word for."""
    return None if math.isnan(figure) else figure


# --- telling ----------------------------------------------------------------------------------


def print_table(rows: Sequence[Row]) -> None:
    print(f"{'MB':>4} {'ways':5} {'method':16} {'GB/s':>6} {'of tcp':>7} {'processor s/GB':>15}")
    for row in rows:
        ways = "both" if row["both_ways"] else "one"
        seconds = row["processor_s_per_gigabyte"]
        processor = f"{'' if seconds is None else format(seconds, '.2f'):>15}"
        print(
            f"{row['megabytes']:4} {ways:5} {row['method']:16} {row['gigabytes_per_s']:6.2f}"
            f" {row['ratio_to_tcp']:7.2f} {processor}"
        )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Ratios to sockets: a panel for each direction, a group of bars for each size."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sizes = sorted({row["megabytes"] for row in rows})
    for axes, both in zip(panels, (False, True), strict=True):
        for k, method in enumerate(methods):
            chosen = [r for r in rows if r["method"] == method and r["both_ways"] == both]
            places = [sizes.index(row["megabytes"]) + k / (len(methods) + 1) for row in chosen]
            heights = [row["ratio_to_tcp"] for row in chosen]
            axes.bar(places, heights, width=1 / (len(methods) + 1), label=method)
        axes.set_xticks([k + 0.4 for k in range(len(sizes))], [f"{size} MB" for size in sizes])
        axes.set_title("both ways at once" if both else "one way")
    panels[0].set_ylabel("rate of models, of that of sockets")
    panels[0].legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
