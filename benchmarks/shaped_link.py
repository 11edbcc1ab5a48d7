"""How fast two daemons relay over a link of 1 Gbit/s, in each wire format.

    sudo python benchmarks/shaped_link.py       in about three minutes; needs root, ip and tc

Two network namespaces are joined by a pair of virtual interfaces, whose both ends `tc tbf` holds to
the rate (`--gigabits`). In each runs a peer, in one of them the coordinator too: the daemons as
anybody starts them. They train a model of 25 million float32 parameters (100 MB, `--elements`) by
RelaySGD; its gradient costs next to nothing. Formats take turns.

relay rate    GB of model a second and direction: a step's time without that of its local training
link rate     the same for TCP sockets over the same link, both ways at once: what there is to reach
MB a step     those that left a peer's interface: payload, framing, HTTP/2, TCP, acknowledgements;
              and the peer's processor seconds, for all that a step takes

On a machine that does other work too, put `chrt --rr 5` before it: without it the processor, and
not the link, may decide.

The first steps are left out, in which messages on the lattice go in full precision. Figures are
medians over the steps of all turns, ratios medians over the turns. Prints a table, and writes JSON
and a plot (`--output`).
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.record import Record
from peer.localswarm.process import own_command
from peer.localswarm.swarm import LocalSwarm
from relayswarm.config import parse
from relayswarm.task import Measured, Options, Site, Task

Row = dict[str, Any]

ELEMENTS = 25_000_000
GIGABITS = 1.0
FORMATS = ("float32", "bfloat16", "lattice")
AT_LEAST = {"bfloat16": 1.8, "lattice": 2.5}  # times float32's relay rate, on 1 Gbit/s
TURNS, STEPS, FIRST = 3, 14, 4
TASK = "drift"
DEVICE = "eth0"
PEERS = ("peer-0", "peer-1")
ADDRESSES = ("10.0.0.1", "10.0.0.2")
CLONE_NEWNET = 0x40000000
LINK_BYTES = 100_000_000
BURST = "1mbit"  # 125 kB: less, and every 64 kB that TCP hands down are cut up by the processor


# --- what is trained --------------------------------------------------------------------------


class DriftOptions(Options):
    """How large the model is."""

    elements: int = ELEMENTS


class Slope:
    """The gradient of a shard, of which a batch is no copy: `TaskData`."""

    notes = ()

    def __init__(self, vector: Tensor) -> None:
        self._vector = vector

    def __len__(self) -> int:
        return 1

    def batch(self, indices: Tensor) -> Tensor:  # noqa: ARG002
        return self._vector

    def digest(self) -> str:
        return hashlib.sha256(self._vector.numpy().data).hexdigest()


class Drift(Task):
    """f(x) = g x, with a slope g for each shard: a large model, and next to nothing to compute."""

    name = TASK
    Options = DriftOptions
    is_random = False

    def optimizer_defaults(self) -> Mapping[str, Any]:
        return {"name": "sgd", "lr": 0.01}

    def model(self) -> nn.Module:
        module = nn.Module()
        module.x = nn.Parameter(torch.randn(self.options.elements))
        return module

    def data(self, site: Site) -> Slope:
        random = torch.Generator().manual_seed(site.shard)
        return Slope(torch.randn(self.options.elements, generator=random))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model.x @ batch

    def gradients(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        return model.x @ batch, (batch,)

    def evaluate(self, model: nn.Module, site: Site) -> dict[str, Measured]:  # noqa: ARG002
        return {"norm": Measured(float(model.x.norm()))}


def offer_task(folder: Path) -> None:
    """A package's metadata, by which daemons with `folder` on their path find the task."""
    information = folder / "drift-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: drift\nVersion: 1.0\n")
    entry = f"[relayswarm.tasks]\n{TASK} = benchmarks.shaped_link:Drift\n"
    (information / "entry_points.txt").write_text(entry)


# --- the link ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """Two namespaces, each with an interface to the other."""

    names: tuple[str, str]

    def sent(self) -> int:
        """Bytes that have left both interfaces."""
        return sum(map(_transmitted, self.names))

    def tcp_seconds(self) -> float:
        """How long it takes until so many bytes (LINK_BYTES) have come in at both ends at once."""
        with _socket_in(self.names[0]) as server, _socket_in(self.names[1]) as one:
            server.bind((ADDRESSES[0], 0))
            server.listen()
            one.connect(server.getsockname())
            other, _ = server.accept()
            with other:
                began = time.perf_counter()
                ends = [threading.Thread(target=_swap, args=(end,)) for end in (one, other)]
                for end in ends:
                    end.start()
                for end in ends:
                    end.join()
                return time.perf_counter() - began


@contextmanager
def linked(gigabits: float) -> Iterator[Link]:
    """A link of that rate in either direction."""
    link = Link((f"relay-{os.getpid()}-a", f"relay-{os.getpid()}-b"))
    try:
        for name in link.names:
            _do(f"ip netns add {name}")
        one, other = link.names
        _do(f"ip link add {DEVICE} netns {one} type veth peer name {DEVICE} netns {other}")
        for name, address in zip(link.names, ADDRESSES, strict=True):
            _do(f"ip -n {name} addr add {address}/24 dev {DEVICE}")
            _do(f"ip -n {name} link set lo up")
            _do(f"ip -n {name} link set {DEVICE} up")
            shape = f"tbf rate {round(gigabits * 1000)}mbit burst {BURST} latency 50ms"
            _do(f"tc -n {name} qdisc add dev {DEVICE} root {shape}")
        yield link
    finally:
        for name in link.names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _do(command: str) -> None:
    subprocess.run(command.split(), check=True)


def _transmitted(name: str) -> int:
    with _inside(name), open("/proc/thread-self/net/dev") as counters:
        (line,) = (line for line in counters if line.strip().startswith(f"{DEVICE}:"))
    return int(line.split()[9])


def _socket_in(name: str) -> socket.socket:
    """A TCP socket of that namespace."""
    with _inside(name):
        return socket.socket()


@contextmanager
def _inside(name: str) -> Iterator[None]:
    """Have this thread in that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{name}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns({name})")
        try:
            yield
        finally:
            libc.setns(here.fileno(), CLONE_NEWNET)


def _swap(end: socket.socket) -> None:
    sender = threading.Thread(target=end.sendall, args=(bytes(LINK_BYTES),))
    sender.start()
    memory = memoryview(bytearray(1 << 20))
    missing = LINK_BYTES
    while missing:
        missing -= end.recv_into(memory[: min(len(memory), missing)])
    sender.join()


# --- the daemons ------------------------------------------------------------------------------


class Step(NamedTuple):
    """One of a peer's, without the local training."""

    seconds: float
    training_seconds: float


@dataclass(frozen=True)
class ShapedCommands:
    """Coordinator and first peer in one namespace, the second peer in the other."""

    link: Link
    config: Path

    def coordinator(self) -> Sequence[str]:
        listen = ("--listen", f"{ADDRESSES[0]}:0", "--metrics-listen", "127.0.0.1:0", "--insecure")
        return self._inside(0, "coordinator", "--config", str(self.config), *listen, "--json")

    def peer(self, peer: str, coordinator: str) -> Sequence[str]:
        place = PEERS.index(peer)
        options = ["--id", peer, "--coordinator", coordinator, "--device", "cpu", "--json"]
        options += ["--listen", f"{ADDRESSES[place]}:0", "--insecure", "--allow-task", TASK]
        return self._inside(place, "peer", *options)

    def _inside(self, place: int, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.link.names[place], *own_command(*arguments)]


class Turn(NamedTuple):
    """One run in one format."""

    steps: list[Step]
    bytes_per_step: float  # of one peer, and so is
    processor_per_step: float  # seconds


def turn(link: Link, wire: str, elements: int, folder: Path) -> Turn:
    """Run the swarm once."""
    config = parse(
        f'peers = 2\nsteps = {STEPS}\n[task]\nname = "{TASK}"\noptions = {{elements = {elements}}}'
        f'\n[topology]\ngraph = "chain"\n[transport]\nwire_format = "{wire}"'
        "\n[checkpoint]\nevery = 0"
    )
    logs = folder / f"{wire}-{time.monotonic_ns()}"
    logs.mkdir()
    (logs / "run.toml").write_text(config.to_toml())
    done: dict[str, list[tuple[float, float]]] = defaultdict(list)  # by peer: when, training
    spent: dict[int, tuple[int, float]] = {}  # by step: bytes and processor seconds, of both peers
    pids: list[int] = []
    with LocalSwarm(ShapedCommands(link, logs / "run.toml"), PEERS, logs) as swarm:
        swarm.start()
        for event in swarm.events():
            if event and event["event"] == "peer_started":
                pids.append(event["pid"])
            if event and event["event"] == "step":
                assert event["missed"] == 0, event
                done[event["peer"]].append((time.monotonic(), event["compute_s"]))
                spent[event["step"]] = (
                    link.sent(),
                    sum(map(_processor_s, pids)),
                )  # the later one's
    steps = [
        Step(later - earlier, training)
        for each in done.values()
        for (earlier, _), (later, training) in zip(each[FIRST:], each[FIRST + 1 :], strict=False)
    ]
    last = STEPS - 2  # as at the first, a peer that is ahead may be sending its next message
    per = (last - FIRST) * len(PEERS)
    sent, processor = (b - a for a, b in zip(spent[FIRST], spent[last], strict=True))
    return Turn(steps, sent / per, processor / per)


def _processor_s(pid: int) -> float:
    """What a process has used so far; 0 once it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return 0.0
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


# --- figures ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-shaped-link"))
    parser.add_argument("--gigabits", type=float, default=GIGABITS, help="rate of the link")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="size of the model")
    parser.add_argument("--turns", type=int, default=TURNS)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces need root: run it with sudo")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not there: install iproute2")
    record = Record()
    with linked(arguments.gigabits) as link, tempfile.TemporaryDirectory() as name:
        offer_task(Path(name))
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (name, os.environ.get("PYTHONPATH")))
        )
        rows = measure(link, arguments.elements, arguments.turns, Path(name))
    about = record.write(
        arguments.output / "shaped_link.json",
        {"rows": rows},
        gigabits=arguments.gigabits,
        elements=arguments.elements,
    )
    plot(rows, arguments.output / "shaped_link.png")
    print_table(rows, about)


def measure(link: Link, elements: int, turns: int, folder: Path) -> list[Row]:
    """A row for each format, and one for TCP sockets."""
    gigabytes = elements * 4 / 1e9
    taken: dict[str, list[Turn]] = defaultdict(list)
    tcp = []
    for _ in range(turns):
        tcp.append(LINK_BYTES / 1e9 / link.tcp_seconds())
        for wire in FORMATS:
            taken[wire].append(turn(link, wire, elements, folder))
    rates = {wire: [gigabytes / _relaying(one) for one in taken[wire]] for wire in FORMATS}
    rows = []
    for wire, each in taken.items():
        ratios = [a / b for a, b in zip(rates[wire], rates[FORMATS[0]], strict=True)]
        steps = [step for one in each for step in one.steps]
        rows.append(
            {
                "format": wire,
                "relay_rate": gigabytes
                / statistics.median(s.seconds - s.training_seconds for s in steps),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "steps_per_s": 1 / statistics.median(s.seconds for s in steps),
                "training_seconds": statistics.median(s.training_seconds for s in steps),
                "bytes_per_step": statistics.median(one.bytes_per_step for one in each),
                "processor_per_step": statistics.median(one.processor_per_step for one in each),
            }
        )
    return [*rows, {"format": "TCP sockets", "relay_rate": statistics.median(tcp)}]


def _relaying(one: Turn) -> float:
    return statistics.median(step.seconds - step.training_seconds for step in one.steps)


def print_table(rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    machine = about["hardware"]
    print(f"{about['date']}, {machine['cpu']}, {machine['cores']} cores, ", end="")
    print(f"load {about['load_before']:.1f} before; link of {about['gigabits']:g} Gbit/s")
    print(f"{'format':12s}  relay GB/s  of float32's  steps/s  training s", end="")
    print("  a step and peer: MB  processor s")
    for row in rows:
        print(f"{row['format']:12s} {row['relay_rate']:11.3f}", end="")
        if "ratio" not in row:
            print()
            continue
        print(
            f" {row['ratio']:13.2f} {row['steps_per_s']:8.2f} {row['training_seconds']:11.3f}",
            end="",
        )
        least = AT_LEAST.get(row["format"])
        met = "" if least is None else ("  met" if row["ratio"] >= least else "  MISSED")
        print(f" {row['bytes_per_step'] / 1e6:19.1f} {row['processor_per_step']:12.2f}{met}")


def plot(rows: Sequence[Row], path: Path) -> None:
    """A bar for each format."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.bar([row["format"] for row in rows], [row["relay_rate"] for row in rows], color="#0072B2")
    axes.set_ylabel("GB of model a second and direction")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
