"""How the commands of a page are run: one session a page, in a folder of its own.

What a page says of other machines is said of this one here: the rules are `COORDINATORS`, `PEERS`
and the methods of `Session`. Numbers of steps stay as they are in the text. What cannot be run is
in `ELSEWHERE`, each with the reason; a command that no rule covers is an error.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer.localswarm.process import Child, Inbox, Said, own_command
from tests.docs.conftest import BLOCKS

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0  # for peers to train, on a machine that does other things too
COMMAND_S = 900.0

ELSEWHERE: Mapping[str, str] = {
    "git": "the address is the reader's; test_newcomer.py clones this repository",
    "cd": "where a session's folder is, is ours to say",
    ".": "the session has its own environment; test_newcomer.py activates one",
    "make install": "test_newcomer.py has it find that all is installed",
    "make test": "this is part of it",
    "make test-docs": "likewise",
    "make mutants": "half an hour; tests/tools/test_mutants.py checks its list",
    "make check": "`.ci/run` runs it",
    "make proto": "needs the generator of an environment of its own; `make check` compares",
    "make docs": "it would write into this folder; test_docs.py compares what it makes",
    "make snapshots": "it would write into this folder; tests/stability compare what it makes",
    "make tables": "needs Fashion-MNIST, and up to an hour; tests/benchmarks/test_tables.py",
    "make tables-slice": "likewise",
    "python examples/own_loop.py": "test_examples.py starts a swarm of it",
    "python benchmarks/": "minutes to an hour each; tests/benchmarks try their parts",
    "docker": "needs an engine and base images: `make test-compose`",
    "curl --cacert": "needs the page's port; tests/coordinator/test_web.py asks with TLS and token",
    "kind": "needs a cluster",
    "kubectl": "needs a cluster; tests/deploy render and validate what is applied",
    "sudo": "needs root",
    "relayswarm simulate --task sine": "test_docs.py installs that page's task and runs it",
    "relayswarm up --task cifar-10": "needs its data; tests/peer/tasks have some of that form",
    "relayswarm up --task image-folder": "likewise",
    "relayswarm up --task text-classification": "likewise",
    "relayswarm up --task char-lm": "likewise",
    "relayswarm audit verify state/audit.jsonl": "needs a site's peer; sites.md has one",
    "relayswarm peer --id laptop": "its coordinator is in a cluster: `make test-networks`",
}
"""Beginnings of commands, and why they are not run here."""

COORDINATORS = ("127.0.0.1:50050", "coordinator.example:50050")
"""Where a page has its coordinator; here it is at a port that the system chose."""

PEERS = re.compile(r"127\.0\.0\.1:(50051|39523)")
METRICS = re.compile(r"127\.0\.0\.1:9101")

PATHS = {
    *("--config", "--store", "--state-dir", "--data-dir", "--task-file", "--site"),
    *("--tls-ca", "--tls-cert", "--tls-key", "--token-file"),
}
"""Options of daemons that name files or folders."""

MAY_DIFFER = ("reproduce",)
"""Commands that answer with exit code 1, too: processes take turns as they happen to."""

RUN_TOML = "peers = 2\n[task]\nname = 'digits'\n[topology]\ngraph = 'chain'\n"
"""The `run.toml` of whoever follows a page that only names it."""

LONG = "steps=1000000"
"""Of coordinators whose page does not say how long to train: until the session ends."""


def files_of(page: Path) -> dict[str, str]:
    """Text of the files that a page shows, by name."""
    shown = (block.text for block in BLOCKS if block.page == page and block.language == "toml")
    return {found[1]: text for text in shown if (found := FILE.match(text))}


def commands_of(page: Path) -> list[list[str]]:
    shells = (block for block in BLOCKS if block.page == page and block.language == "bash")
    return [part for block in shells for words in block.commands() for part in parts(words)]


def parts(words: list[str]) -> list[list[str]]:
    """Those of `A && B`."""
    found: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            found.append([])
        else:
            found[-1].append(word)
    return found


def reason_not_to_run(words: Sequence[str]) -> str | None:
    """Why this command is not run here; None if it is."""
    line = shlex.join(words)
    found = [why for start, why in ELSEWHERE.items() if (line + " ").startswith(_whole(start))]
    return found[0] if found else None


def _whole(start: str) -> str:
    return start if start.endswith("/") else f"{start} "


PLAIN = ("mv", "rm", "mkdir", "cp", "openssl")
RESULTS = ("sha256sum",)
"""Of the models that peers leave, once all have finished; they must be the same."""

FILE = re.compile(r"# (\S+\.toml)\n")
"""Begins a block of TOML that stands for a file of that name."""


@dataclass
class Daemon:
    """A coordinator or peer under way, and what it has said."""

    child: Child
    inbox: Inbox
    said: list[Mapping[str, Any]] = field(default_factory=list)

    def told(self, event: str) -> Mapping[str, Any]:
        """The first event of that name, awaited."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := [one for one in self.said if one["event"] == event]):
            try:
                item = self.inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self.child.name} said no {event}: {self._log}") from None
            assert isinstance(item, Said), f"{self.child.name} ended: {self._log}"
            self.said.append(item.event)
        return found[0]

    @property
    def _log(self) -> str:
        return "\n".join(self.child.last_lines())


class Session:
    """A page's commands, one after another. Use as a context manager: it ends all daemons."""

    def __init__(
        self,
        folder: Path,
        commands: Sequence[Sequence[str]],
        files: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._commands, self._files = folder, commands, files or {}
        shutil.copytree(ROOT / "examples", folder / "examples")
        for name, text in {"run.toml": RUN_TOML, **self._files}.items():
            (folder / name).write_text(text)
        self._coordinator: Daemon | None = None
        self._peers: list[Daemon] = []
        self._daemons: list[Daemon] = []
        self._advertised: dict[str, Daemon] = {}
        self.ran: list[str] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons):  # peers before their coordinator
            daemon.child.terminate()
            daemon.child.end(PATIENCE_S)

    def run(self) -> None:
        """All commands that can be. Raises AssertionError for one that goes wrong."""
        for k, words in enumerate(self._commands):
            if reason_not_to_run(words) is None:
                self._run(words, self._commands[k + 1 :])
                self.ran.append(shlex.join(words))
        self._await_training()

    def _run(self, words: Sequence[str], later: Sequence[Sequence[str]]) -> None:
        program, *rest = words
        if program in PLAIN:
            subprocess.run(words, cwd=self._folder, check=True)
        elif program in RESULTS:
            self._compare(words)
        elif program == "make":
            self._make(rest)
        elif program == "curl":
            self._curl(rest)
        else:
            self._relayswarm(rest, later)

    def _make(self, rest: Sequence[str]) -> None:
        """`make help` as it is; of another target the command of ours that it runs."""
        if rest == ["help"]:
            subprocess.run(["make", "-s", "-C", str(ROOT), "help"], check=True)
            return
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
        (line,) = re.findall(rf"^{rest[0]}:.*\n\t@\$\(BIN\)/relayswarm (.*)$", text, re.MULTILINE)
        self._foreground(shlex.split(line.replace("$(ARGS)", "")))

    def _compare(self, words: Sequence[str]) -> None:
        """Models that a page says are the same, once all peers have them."""
        for peer in self._peers:
            peer.told("peer_finished")
        shown = subprocess.run(words, cwd=self._folder, check=True, capture_output=True, text=True)
        digests = {line.split()[0] for line in shown.stdout.splitlines()}
        assert len(digests) == 1, shown.stdout

    def _curl(self, rest: Sequence[str]) -> None:
        (url,) = rest
        self._await_training()
        address = self._peers[-1].told("peer_started")["metrics_address"]
        with urllib.request.urlopen(METRICS.sub(address, url), timeout=60) as answer:
            assert b"relayswarm_peer_" in answer.read()

    def _relayswarm(self, rest: Sequence[str], later: Sequence[Sequence[str]]) -> None:
        match rest[0]:
            case "coordinator":
                self._start_coordinator(rest, later)
            case "peer":
                self._start_peer(rest)
            case "status" | "health" | "pull" | "doctor" | "audit":
                self._ask(rest)
            case "certs":
                self._foreground([*rest, "--host", "127.0.0.1"])
            case _:
                self._foreground(rest)

    # --- commands that end --------------------------------------------------------------------

    def _ask(self, rest: Sequence[str]) -> None:
        """Of a swarm that trains; one is started if the page has none."""
        if self._coordinator is None:
            self._start_coordinator(["coordinator"], [])
            self._start_peer(["peer"])
        self._await_training()
        words = [self._here(word) for word in rest]
        if rest[0] in ("status", "doctor") and "--coordinator" not in rest:
            words += ["--coordinator", self._address]
        self._foreground(words)

    def _foreground(self, words: Sequence[str]) -> None:
        ended = subprocess.run(
            own_command(*words),
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        allowed = (0, 1) if words[0] in MAY_DIFFER else (0,)
        told = f"{shlex.join(words)}\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
        assert ended.returncode in allowed, told

    # --- daemons ------------------------------------------------------------------------------

    @property
    def _address(self) -> str:
        assert self._coordinator is not None
        return str(self._coordinator.told("coordinator_started")["address"])

    def _here(self, word: str) -> str:
        """Addresses of the text as they are here."""
        if word in COORDINATORS:
            return self._address
        if word in self._advertised:
            return str(self._advertised[word].told("peer_started")["address"])
        if PEERS.fullmatch(word):
            return str(self._peers[-1].told("peer_started")["address"])
        return word

    def _start_coordinator(self, rest: Sequence[str], later: Sequence[Sequence[str]]) -> None:
        """With as many peers as the page goes on to start, or as the file says that it shows."""
        others = [words for words in later if reason_not_to_run(words) is None]
        peers = len(list(_until_next(others)))
        words = [*_changed(rest, {"--listen": "127.0.0.1:0", "--metrics-listen": "127.0.0.1:0"})]
        for option in ("--listen", "--metrics-listen"):
            words += [option, "127.0.0.1:0"] if option not in rest else []
        words.append("--json")
        if self._files.keys().isdisjoint(rest):
            words += ["--set", f"peers={max(1, peers)}"]
            words += [] if any(word.startswith("steps=") for word in rest) else ["--set", LONG]
        self._coordinator = self._start("coordinator", words)

    def _start_peer(self, rest: Sequence[str]) -> None:
        if self._coordinator is None:
            self._start_coordinator(["coordinator"], [])
        here = {"--listen": "127.0.0.1:0", "--metrics-listen": "127.0.0.1:0", "--advertise": None}
        words = [self._here(word) for word in _changed(rest, here)]
        if "--coordinator" not in words:
            words += ["--coordinator", self._address]
        self._peers.append(self._start("peer", [*words, "--json"]))
        if "--advertise" in rest:
            self._advertised[rest[rest.index("--advertise") + 1]] = self._peers[-1]

    def _start(self, name: str, words: Sequence[str]) -> Daemon:
        inbox: Inbox = queue.Queue()
        log = self._folder / f"{name}-{len(self._daemons)}.log"
        # A child's folder is its parent's; options with paths are made absolute instead.
        placed = [
            self._placed(before, word) for before, word in zip(["", *words], words, strict=False)
        ]
        daemon = Daemon(Child(name, own_command(*placed), log, inbox), inbox)
        self._daemons.append(daemon)
        return daemon

    def _placed(self, option: str, word: str) -> str:
        return str(self._folder / word) if option in PATHS else word

    def _await_training(self) -> None:
        """Until every peer has made a step."""
        for peer in self._peers:
            peer.told("step")


def _until_next(commands: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    """The peers that are started before the next coordinator is."""
    for words in commands:
        if words[:2] == ["relayswarm", "coordinator"]:
            return
        if words[:2] == ["relayswarm", "peer"]:
            yield words


def _changed(words: Sequence[str], values: Mapping[str, str | None]) -> Iterator[str]:
    """With other values of these options; without the option where there is none."""
    rest = iter(words)
    for word in rest:
        if word not in values:
            yield word
            continue
        next(rest)
        if (value := values[word]) is not None:
            yield from (word, value)
