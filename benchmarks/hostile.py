"""What hostile calls do to a peer that trains: its memory, its steps, and what it answers.

    python benchmarks/hostile.py               10,000 hostile calls, and as many harmless ones
    python benchmarks/hostile.py --calls 500   a few of each

Three peers on a chain train without end; peer-0 is called, at a fixed rate. Its caller knows all
that a member may know (run, epoch, members and their lives, the model's fingerprint), and speaks in
the clear, so that nothing stops it at the door. It does not pass for the peer's neighbour with
messages that are still to come: of that only certificates keep anybody (docs/security.md).

Slices of hostile and of harmless calls take turns, so that whatever else the machine does weighs on
both; what they send is alike in number and size. `ratio` is the median, over pairs of slices, of
the steps in the hostile slice by those in the harmless one; `to_quiet` compares with slices without
calls. Processor seconds are those of the called peer. Calls of the last slice that stay half open
are left to the peer to cut off. Prints JSON, and writes it (`--output`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
from xxhash import xxh3_64_intdigest

from coordinator.status import fetch
from peer.transport import wire
from relayswarm.peer.v1 import peer_pb2 as pb

PEERS = 3
SETTINGS = ("task.name=digits", "topology.graph=chain", "data.batch_size=32", "steps=10000000")
LINES = 8  # connections of the caller
TIMEOUT_S = 30.0
OVERSIZED = wire.MESSAGE_LIMIT + 1000
LARGE = 2 * wire.CHUNK_BYTES

Call = Callable[["Caller", grpc.Channel], Any]


class Caller:
    """Somebody who calls a peer, and knows its run. Each call ends in a word: a status or verdict.

    `coordinator` and `peer` are addresses. Calls do not wait; `settle` does.
    """

    def __init__(self, coordinator: str, peer: str, seed: int = 1) -> None:
        self._random = random.Random(seed)
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        ]
        self._lines = [grpc.insecure_channel(peer, options) for _ in range(LINES)]
        self._released = threading.Event()
        self._changed = threading.Condition()
        self._open: set[Any] = set()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        status = fetch(coordinator)
        self.run_id = status.run_id
        self.lives = {m.member.peer_id: m.member.incarnation for m in status.members}
        first = next(self.read_model(self._lines[0]))
        self.model = pb.ReadModelResponse.FromString(first).header
        state = self._lines[0].unary_unary(
            f"/{wire.SERVICE}/GetState", response_deserializer=pb.GetStateResponse.FromString
        )
        self.state: Callable[[], pb.GetStateResponse] = lambda: state(b"", timeout=TIMEOUT_S)
        while not (now := self.state()).epoch.number or now.step < 10:
            time.sleep(0.1)  # it waits for the others, or has just begun
        self.epoch = now.epoch
        self.bomb = self.message(sections=[pb.Section()] * 500_000)

    def call(self, name: str, kind: Call) -> None:
        """Begin a call of that kind."""
        future = kind(self, self._random.choice(self._lines))
        with self._changed:
            self._open.add(future)
        future.add_done_callback(lambda done: self._ended(name, done))

    def settle(self, timeout_s: float) -> None:
        """Wait for the end of all calls; what is left then, or waits on our side, is cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout_s)
            left = list(self._open)
        for future in left:
            future.cancel()
        self._released.set()
        self._released = threading.Event()

    def close(self) -> None:
        self._released.set()
        for line in self._lines:
            line.close()

    def _ended(self, name: str, future: Any) -> None:
        word = _word(future)
        with self._changed:
            self._open.discard(future)
            self.outcomes[name, word] += 1
            self._changed.notify_all()

    # --- what calls are made of --------------------------------------------------------------

    def unary(self, line: grpc.Channel, request: bytes, method: str = "RelayUnary") -> Any:
        reads = pb.RelayUnaryResponse.FromString if method == "RelayUnary" else None
        call = line.unary_unary(f"/{wire.SERVICE}/{method}", response_deserializer=reads)
        return call.future(request, timeout=TIMEOUT_S)

    def stream(self, line: grpc.Channel, requests: Iterator[bytes]) -> Any:
        reads = pb.RelayResponse.FromString
        call = line.stream_unary(f"/{wire.SERVICE}/Relay", response_deserializer=reads)
        return call.future(requests, timeout=TIMEOUT_S)

    def read_model(self, line: grpc.Channel, **fields: Any) -> Any:
        request = pb.ReadModelRequest(**({"run_id": self.run_id} | fields))
        call = line.unary_stream(f"/{wire.SERVICE}/ReadModel")
        return call(request.SerializeToString(), timeout=TIMEOUT_S)

    def half_open(self, *requests: bytes) -> Iterator[bytes]:
        """These requests, and then neither more nor the end."""
        released = self._released
        yield from requests
        released.wait(TIMEOUT_S)

    def header(self, **changes: Any) -> pb.MessageHeader:
        """Of the message that peer-1 sent in the first step: sound, and long since used."""
        elements = self.model.payload_bytes // 4
        fields = {
            "protocol_version": 1,
            "run_id": self.run_id,
            "sender": "peer-1",
            "incarnation": self.lives["peer-1"],
            "epoch": self.epoch,
            "kind": pb.KIND_RELAY,
            "count": 1,
            "weight": 1.0,
            "sections": [pb.Section(role=pb.SECTION_ROLE_MODEL, elements=elements)],
            "codec": pb.Codec(format=pb.FORMAT_F32),
            "payload_bytes": 4 * elements,
            "model_fingerprint": self.model.model_fingerprint,
        }
        return pb.MessageHeader(**(fields | changes))

    def message(self, **changes: Any) -> bytes:
        payload = bytes(min(self.model.payload_bytes, LARGE))
        return wire.unary_bytes(self.header(**changes), xxh3_64_intdigest(payload), payload)

    def streamed(self, size: int, **changes: Any) -> Iterator[bytes]:
        yield pb.RelayRequest(header=self.header(**changes)).SerializeToString()
        for start in range(0, size, wire.CHUNK_BYTES):
            yield wire.chunk_bytes(start, bytes(min(wire.CHUNK_BYTES, size - start)))

    def garbage(self, size: int = 200) -> bytes:
        return b"\xff" + self._random.randbytes(size - 1)


def _word(future: Any) -> str:
    if future.cancelled():
        return "cancelled by the caller"
    code = future.code()
    if code is not grpc.StatusCode.OK:
        return str(code.name)
    answer = future.result()
    if isinstance(answer, pb.RelayUnaryResponse):
        answer = answer.response
    return str(pb.Verdict.Name(answer.verdict)) if isinstance(answer, pb.RelayResponse) else "OK"


def _drained(call: Any) -> Any:
    """A stream of answers that is read to its end, in a thread of its own."""

    def read() -> None:
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass  # its status is what counts

    threading.Thread(target=read, daemon=True).start()
    return call


HOSTILE: dict[str, tuple[Call, frozenset[str]]] = {
    # name: the call, and how it may end
    "garbage": (
        lambda c, line: c.unary(line, c.garbage()),
        frozenset({"INVALID_ARGUMENT"}),
    ),
    "garbage in a stream": (
        lambda c, line: c.stream(line, iter([c.garbage()])),
        frozenset({"INVALID_ARGUMENT"}),
    ),
    "garbage for a state": (
        lambda c, line: c.unary(line, c.garbage(), "GetState"),
        frozenset({"INVALID_ARGUMENT"}),
    ),
    "a method that does not exist": (
        lambda c, line: c.unary(line, c.garbage(), "Delete"),
        frozenset({"UNIMPLEMENTED"}),
    ),
    "oversized": (
        lambda c, line: c.unary(line, bytes(OVERSIZED)),
        frozenset({"RESOURCE_EXHAUSTED"}),
    ),
    "a header of a megabyte": (
        lambda c, line: c.unary(line, c.bomb),
        frozenset({"INVALID_ARGUMENT"}),
    ),
    "wrong order": (
        lambda c, line: c.stream(line, itertools.islice(c.streamed(LARGE), 1, None)),
        frozenset({"INVALID_ARGUMENT"}),
    ),
    "half open, nothing sent": (
        lambda c, line: c.stream(line, c.half_open()),
        frozenset({"CANCELLED", "RESOURCE_EXHAUSTED", "cancelled by the caller"}),
    ),
    "half open, a model not read": (
        lambda c, line: c.read_model(line),
        # a small model goes out whole: then only the caller's own deadline ends the call
        frozenset(
            {"CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "cancelled by the caller"}
        ),
    ),
    "replayed": (
        lambda c, line: c.unary(line, c.message()),
        frozenset({"VERDICT_STALE_STEP", "VERDICT_DUPLICATE"}),
    ),
    "foreign run": (
        lambda c, line: c.unary(line, c.message(run_id="walk")),
        frozenset({"VERDICT_FOREIGN_RUN"}),
    ),
    "wrong neighbour": (
        lambda c, line: c.unary(line, c.message(sender="peer-2", incarnation=c.lives["peer-2"])),
        frozenset({"VERDICT_NOT_A_NEIGHBOUR"}),
    ),
    "a stranger": (
        lambda c, line: c.unary(line, c.message(sender="x" * 30_000)),
        frozenset({"VERDICT_NOT_A_NEIGHBOUR"}),
    ),
    "an earlier life": (
        lambda c, line: c.unary(line, c.message(incarnation=1)),
        frozenset({"VERDICT_OLD_INCARNATION"}),
    ),
    "another epoch": (
        lambda c, line: c.unary(line, c.message(epoch=pb.Epoch(term=1, number=1))),
        frozenset({"VERDICT_EPOCH_BEHIND"}),
    ),
    "too many models": (
        lambda c, line: c.unary(line, c.message(step=9_000_000, count=99)),
        frozenset({"VERDICT_BAD_COUNT"}),
    ),
    "beyond the last step": (
        lambda c, line: c.unary(line, c.message(step=2**64 - 1)),
        frozenset({"VERDICT_FOREIGN_RUN"}),
    ),
    "a payload of an exabyte": (
        lambda c, line: c.stream(line, c.streamed(LARGE, payload_bytes=2**60)),
        frozenset({"VERDICT_BAD_LENGTH"}),
    ),
    "a snapshot that is not kept": (
        lambda c, line: _drained(c.read_model(line, snapshot_id=1)),
        frozenset({"NOT_FOUND", "RESOURCE_EXHAUSTED"}),
    ),
    "a model of another run": (
        lambda c, line: _drained(c.read_model(line, run_id="walk")),
        frozenset({"FAILED_PRECONDITION"}),
    ),
}

_state: Call = lambda c, line: c.unary(line, b"", "GetState")  # noqa: E731
_late: Call = lambda c, line: c.unary(line, c.message())  # noqa: E731
_late_stream: Call = lambda c, line: c.stream(line, c.streamed(LARGE))  # noqa: E731
_model: Call = lambda c, line: _drained(c.read_model(line))  # noqa: E731

# As many small questions, late messages, large streams and readings as among the hostile calls.
_SAME = (
    *(_state, _state, _state, _state, _late_stream, _late_stream, _late_stream, _state, _model),
    *(_late, _late, _late, _late, _late, _late, _late, _late, _late_stream, _model, _state),
)
HARMLESS: dict[str, Call] = {
    f"harmless, for {name}": call for name, call in zip(HOSTILE, _SAME, strict=True)
}


def _ratios(rates: list[float], others: list[float]) -> list[float]:
    return [rate / other for rate, other in zip(rates, others, strict=True)]


def storm(caller: Caller, calls: dict[str, Call], count: int, rate: float) -> None:
    """Make `count` calls, kinds in turn, at `rate` a second; without kinds let as long go by."""
    began, names = time.monotonic(), list(calls)
    for index in range(count):
        time.sleep(max(0.0, began + index / rate - time.monotonic()))
        if names:
            name = names[index % len(names)]
            caller.call(name, calls[name])


def unexpected(outcomes: Counter[tuple[str, str]]) -> dict[str, int]:
    """Hostile calls that ended otherwise than they may. Any may be one too many of its caller's, or
    be cut off for another."""
    return {
        f"{name}: {word}": count
        for (name, word), count in outcomes.items()
        if name in HOSTILE and word not in HOSTILE[name][1] | {"CANCELLED", "RESOURCE_EXHAUSTED"}
    }


# --- the run --------------------------------------------------------------------------------------


class Processes:
    """A coordinator and peers, as processes of their own."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        given = [part for setting in SETTINGS for part in ("--set", setting)]
        listen = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
        told = self._start("coordinator", *listen, *given, "--set", f"peers={PEERS}")[1]
        self.coordinator = told["address"]
        started = [
            self._start("peer", "--id", f"peer-{k}", "--coordinator", self.coordinator)
            for k in range(PEERS)
        ]
        self.process = psutil.Process(started[0][0].pid)
        self.peer = started[0][1]["address"]

    def seconds(self) -> float:
        """Of the processor that the called peer has taken."""
        times = self.process.cpu_times()
        return times.user + times.system

    def _start(self, command: str, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        log = (self._folder / f"{command}-{'-'.join(arguments[1:2]).replace(':', '-')}.log").open(
            "w"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "peer.cli", command, "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == f"{command}_started":
                drain = threading.Thread(target=process.stdout.read, daemon=True)
                drain.start()
                return process, event
        raise RuntimeError(Path(log.name).read_text())


def measure(calls: int, rate: float, slices: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        swarm = Processes(stack, folder)
        caller = Caller(swarm.coordinator, swarm.peer)
        stack.callback(caller.close)
        each = calls // slices
        hostile = {name: call for name, (call, _) in HOSTILE.items()}
        storm(caller, HARMLESS, each, rate)  # warm-up: threads, connections, allocator
        caller.settle(5.0)
        before = swarm.process.memory_info().rss
        kinds = {"harmless": HARMLESS, "hostile": hostile, "quiet": {}}
        rates: dict[str, list[float]] = {name: [] for name in kinds}
        processor: dict[str, list[float]] = {name: [] for name in kinds}
        memory = [before]  # after each slice of hostile calls
        peak = before
        for pair in range(slices):
            for name in list(kinds) if pair % 2 == 0 else list(kinds)[::-1]:
                step, began, spent = caller.state().step, time.monotonic(), swarm.seconds()
                storm(caller, kinds[name], each, rate)
                rates[name].append((caller.state().step - step) / (time.monotonic() - began))
                processor[name].append(swarm.seconds() - spent)
                peak = max(peak, swarm.process.memory_info().rss)
                caller.settle(TIMEOUT_S if pair == slices - 1 else 0.5)
                if name == "hostile":
                    memory.append(swarm.process.memory_info().rss)
        after = swarm.process.memory_info().rss
        ratios = _ratios(rates["hostile"], rates["harmless"])
        made = sum(n for (name, _), n in caller.outcomes.items() if name in HOSTILE)
        return {
            "calls": {"hostile": made, "harmless": each * slices, "a_second": rate},
            "memory_mb": {
                "before": round(before / 2**20, 1),
                "peak": round(peak / 2**20, 1),
                "after": round(after / 2**20, 1),
                "grown": round((after - before) / 2**20, 1),
                "by_slice": [round((now - before) / 2**20, 1) for now in memory],
            },
            "steps_a_second": {k: round(statistics.median(v), 2) for k, v in rates.items()},
            "processor_seconds": {k: round(sum(v), 1) for k, v in processor.items()},
            "ratio": round(statistics.median(ratios), 3),
            "to_quiet": round(statistics.median(_ratios(rates["hostile"], rates["quiet"])), 3),
            "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
            "still_trains": swarm.process.is_running() and caller.state().state != "finished",
            "unexpected": unexpected(caller.outcomes),
            "outcomes": {
                name: {w: n for (k, w), n in sorted(caller.outcomes.items()) if k == name}
                for name in (*HOSTILE, *HARMLESS)
            },
            "lines_logged": len((folder / "peer-peer-0.log").read_text().splitlines()),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000, help="hostile calls")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second")
    parser.add_argument("--slices", type=int, default=40, help="of hostile calls")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    given = parser.parse_args(arguments)
    figures = measure(given.calls, given.rate, given.slices)
    figures["machine"] = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    figures["date"] = time.strftime("%Y-%m-%d")
    text = json.dumps(figures, indent=2)
    if given.output:
        given.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
