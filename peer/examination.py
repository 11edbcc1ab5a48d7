"""What `relayswarm doctor` looks at: this machine, the coordinator, the way back, the neighbours.

What belongs here: each check, and what to do when it fails. Nothing is changed; a port is opened
for the time of the check that needs one.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from peer.manifest import versions
from peer.rehearsal import Rehearsal, rehearse
from peer.transport.probe import (
    CalledBack,
    CoordinatorProbe,
    Rate,
    Swarm,
    answering,
    line_to,
)
from relayswarm.config import RunConfig
from relayswarm.errors import JoinError, RelayswarmError
from relayswarm.net.address import is_loopback, split_address
from relayswarm.net.security import PLAIN, Security
from relayswarm.version import __version__

LEAST_DISK = 1 << 30  # bytes, where no run says how large its model is
COPIES = (
    8  # of a model: two checkpoints of model and two optimizer states, the export, and one more
)
LEAST_FILES = 1024
CLOCK_S = 2.0
SLOW_BYTES_PER_S = 1e6
MOST_NEIGHBOURS = 8


class Verdict(StrEnum):
    """How a check went. `unknown`: it could not be made."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was found, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """The machine as its peer would be started. `config` is of the run that it is to take part in,
    where that is known."""

    coordinator: str
    peer_id: str = ""
    listen: str = "127.0.0.1:0"
    advertise: str = ""
    device: str = "auto"
    data_dir: Path | None = None
    state_dir: Path | None = None
    security: Security = PLAIN
    config: RunConfig | None = None


def examine(patient: Patient) -> Iterator[Check]:
    """All checks, one after the other. Raises ConfigError for options that cannot be used."""
    split_address(patient.coordinator, "--coordinator")
    split_address(patient.listen, "--listen")
    if patient.advertise:
        split_address(patient.advertise, "--advertise")
    yield check_versions()
    yield check_device(patient.device)
    found: Rehearsal | None = None
    if patient.config is not None:
        check, found = check_task(patient.config, patient)
        yield check
    yield check_disk(patient.state_dir or Path(), found)
    yield check_files()
    with CoordinatorProbe(patient.coordinator, patient.security) as probe:
        try:
            swarm = probe.swarm()
        except JoinError as error:
            yield _no_coordinator(str(error), patient)
            return
        text = f"{patient.coordinator}: run {swarm.run_id}, {swarm.state}, {len(swarm.members)} "
        text += f"members; {_ms(swarm.round_trip_s)} there and back"
        yield Check("coordinator", Verdict.OK, text)
        yield from _way_back(probe, patient)
    yield from _neighbours(swarm, patient)


# --- this machine -------------------------------------------------------------------------------


def check_versions() -> Check:
    """Whether the packages that are installed are ones that this release is made for."""
    found = ", ".join(f"{name} {number}" for name, number in versions().items())
    lacking = []
    for one in _requirements():
        name, _, least = one.partition(">=")
        if ";" in one or not least:
            continue  # an extra's
        try:
            installed = version(name)
        except PackageNotFoundError:
            lacking.append(f"{name} is missing")
            continue
        if _numbers(installed) < _numbers(least):
            lacking.append(f"{name} {installed} is older than {least}")
    if lacking:
        remedy = "pip install --upgrade relayswarm, or -c constraints.txt -e . in a clone"
        return Check("versions", Verdict.FAILED, "; ".join(lacking), remedy)
    return Check("versions", Verdict.OK, found)


def _requirements() -> list[str]:
    """What this release says it needs; nothing where it was not installed."""
    try:
        return requires("relayswarm") or []
    except PackageNotFoundError:
        return []


def _numbers(text: str) -> tuple[int, ...]:
    """Of a version, as far as they are numbers."""
    parts = text.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def check_device(device: str) -> Check:
    """Whether torch can compute where it is told to."""
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    has = ", ".join(gpus) or "no GPU that torch can use"
    if device not in ("auto", "cpu"):
        try:
            torch.ones(1, device=device).sum().item()
        except (RuntimeError, AssertionError) as error:
            text = f"{device}: {' '.join(str(error).split())[:200]}"
            remedy = "install the driver and a torch built for it, or say --device cpu"
            return Check("device", Verdict.FAILED, text, remedy)
    return Check(
        "device", Verdict.OK, f"{device}: {has}; torch has {torch.get_num_threads()} threads"
    )


def check_task(config: RunConfig, patient: Patient) -> tuple[Check, Rehearsal | None]:
    """Whether this machine can train the run's task."""
    device = "cuda" if patient.device == "auto" and torch.cuda.is_available() else patient.device
    try:
        found = rehearse(config, patient.data_dir, "cpu" if device == "auto" else device)
    except RelayswarmError as error:
        remedy = "mend that; relayswarm check says the same"
        return Check("task", Verdict.FAILED, str(error), remedy), None
    step = f"{_ms(found.seconds_per_step)} a step, {found.message_bytes:,} bytes a message"
    if found.warnings:
        return Check("task", Verdict.WARNING, f"{step}; {found.warnings[0]}", "see above"), found
    return Check("task", Verdict.OK, f"{config.task.name}: {step}"), found


def check_disk(folder: Path, found: Rehearsal | None) -> Check:
    """Whether checkpoints find room in the folder, or where it is going to be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = COPIES * found.model_bytes if found else LEAST_DISK
    text = f"{_bytes(free)} free for {folder.absolute()}, {_bytes(needed)} needed"
    if free < needed:
        remedy = "make room, or give --state-dir another place"
        return Check("disk", Verdict.FAILED, text, remedy)
    return Check("disk", Verdict.OK, text)


def check_files() -> Check:
    """Whether the process may open as many files as connections need."""
    if sys.platform == "win32":  # pragma: no cover
        return Check("open files", Verdict.UNKNOWN, "not known on this system")
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_FILES:
        remedy = f"raise it: ulimit -n {LEAST_FILES}"
        return Check("open files", Verdict.WARNING, f"{limit} at most", remedy)
    return Check("open files", Verdict.OK, f"{limit} at most")


# --- the swarm ----------------------------------------------------------------------------------


def _no_coordinator(why: str, patient: Patient) -> Check:
    remedy = "check the address, that the coordinator runs, and that no firewall is between"
    if "certificate" in why.lower() or "handshake" in why.lower() or "ssl" in why.lower():
        remedy = "check --tls-ca, and that the coordinator's certificate names the host you call"
    elif "unauthenticated" in why:
        remedy = "give --token-file with a token that the coordinator's file holds"
    elif not patient.security.encrypts:
        remedy += "; if it wants TLS, give --tls-ca, --tls-cert and --tls-key"
    return Check("coordinator", Verdict.FAILED, why, remedy)


def _way_back(probe: CoordinatorProbe, patient: Patient) -> Iterator[Check]:
    """Clock, releases, and whether others reach the address that is advertised."""
    with answering(patient.listen, patient.security) as (listening, nonce):
        advertised = patient.advertise or listening
        try:
            answer = probe.call_back(patient.peer_id, advertised, nonce)
        except JoinError as error:
            remedy = "wait a few seconds and ask again"
            yield Check("way back", Verdict.UNKNOWN, str(error), remedy)
            return
    if answer is None:
        text, remedy = (
            "the coordinator is of a release that cannot call back",
            "bring it up to date",
        )
        yield Check("way back", Verdict.UNKNOWN, text, remedy)
        return
    yield check_release(answer.release)
    yield check_clock(answer)
    yield check_way_back(answer, advertised, patient)


def check_release(theirs: str) -> Check:
    """Whether the coordinator is of the same minor release: others refuse each other."""
    text = f"relayswarm {__version__} here, {theirs} there"
    if theirs.split(".")[:2] != __version__.split(".")[:2]:
        remedy = "install the same release on both: peers of different minor releases cannot join"
        return Check("release", Verdict.FAILED, text, remedy)
    return Check("release", Verdict.OK, text)


def check_clock(answer: CalledBack) -> Check:
    """Whether both clocks agree. A peer that comes back with an earlier time than in its last life
    is taken for the old one."""
    text = (
        f"{answer.ahead_s:+.2f} s from the coordinator's, give or take {answer.round_trip_s:.2f} s"
    )
    if abs(answer.ahead_s) > CLOCK_S + answer.round_trip_s:
        remedy = (
            "set the clocks, e.g. by NTP: logs are told apart by time, and so are a peer's lives"
        )
        return Check("clock", Verdict.WARNING, text, remedy)
    return Check("clock", Verdict.OK, text)


def check_way_back(answer: CalledBack, advertised: str, patient: Patient) -> Check:
    """Whether the coordinator reached this machine, as other peers have to."""
    if answer.reached:
        text = f"{advertised} is reached from the coordinator"
        if is_loopback(split_address(advertised, "--advertise")[0]):
            remedy = (
                "for peers on other machines give --listen 0.0.0.0:PORT and --advertise HOST:PORT"
            )
            return Check("way back", Verdict.OK, f"{text}, which is this machine", remedy)
        return Check("way back", Verdict.OK, text)
    port = split_address(advertised, "--advertise")[1]
    remedy = f"open port {port} of this machine to the others, and advertise what leads there"
    if is_loopback(split_address(patient.listen, "--listen")[0]):
        remedy = "listen for others, too: --listen 0.0.0.0:PORT --advertise HOST:PORT"
    verdict = Verdict.UNKNOWN if answer.untried else Verdict.FAILED
    return Check("way back", verdict, f"{advertised}: {answer.problem}", remedy)


def _neighbours(swarm: Swarm, patient: Patient) -> Iterator[Check]:
    others = [one for one in swarm.members if one[0] != patient.peer_id]
    if not others:
        yield Check("neighbours", Verdict.UNKNOWN, "there is nobody yet to measure the line to")
    for peer, address in others[:MOST_NEIGHBOURS]:
        try:
            line = line_to(peer, address, swarm.run_id, patient.security)
        except JoinError as error:
            remedy = (
                f"let this machine reach {address}, or have {peer} advertise what can be reached"
            )
            yield Check("neighbour", Verdict.FAILED, str(error), remedy)
            continue
        text = f"{peer} at {address}: {_ms(line.round_trip_s)} there and back"
        yield check_rate(line.rate, f"{text}; ")


def check_rate(rate: Rate, before: str) -> Check:
    """Whether models come fast enough from a neighbour; `before` says which one."""
    if rate.bytes_per_s is None:
        return Check("neighbour", Verdict.OK, before + rate.why)
    told = f"{_bytes(rate.bytes_per_s)}/s from there"
    if rate.at_least:
        text = f"{before}at least {told}: its model is too small to tell more"
        return Check("neighbour", Verdict.OK, text)
    if rate.bytes_per_s < SLOW_BYTES_PER_S:
        remedy = "take fewer bytes: transport.wire_format, or more algorithm.local_steps"
        return Check("neighbour", Verdict.WARNING, before + (rate.why or told), remedy)
    return Check("neighbour", Verdict.OK, before + told)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
