"""The chain of records: what breaks it is found, and what cannot be recorded stays here."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from peer import cli
from peer.audit import FIRST, LONGEST, Audit, BrokenChainError, verify
from peer.transport.contract import Parcel
from relayswarm.errors import AuditError, ConfigError, ExitCode

PARCEL = Parcel("peer-1", "certificate", "relay", "1.2", 7, 0, 12)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"x")


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def write(file: Path, count: int = 5) -> list[bytes]:
    """So many more records; returns all lines."""
    audit = Audit(file)
    for k in range(count):
        assert audit.leaving(PARCEL, f"{k:064x}")
    audit.close()
    return lines_of(file)


def test_a_record_says_what_left_to_whom(file: Path) -> None:
    audit = Audit(file)
    audit.accepted("run", "peers = 3", {"task": "digits"})
    audit.leaving(PARCEL, None)
    audit.leaving(PARCEL, "ab")
    audit.refused("law", "no")
    audit.close()
    accepted, begun, sent, refused = (json.loads(line) for line in file.read_text().splitlines())
    assert accepted["event"] == "accepted"
    assert accepted["previous"] == FIRST
    assert accepted["task"] == "digits"
    assert begun.keys() >= {"receiver", "known_by", "kind", "epoch", "step", "attempt", "bytes"}
    assert begun["event"] == "begun"
    assert sent["payload"] == "ab"
    assert sent["algorithm"] == audit.digest
    assert sent["previous"] == begun["digest"]
    assert (refused["reason"], refused["text"], refused["count"]) == ("law", "no", 1)
    assert [r["number"] for r in (accepted, begun, sent, refused)] == [0, 1, 2, 3]
    found = verify(lines_of(file))
    assert (found.records, found.head) == (4, refused["digest"])
    assert found.events == {"accepted": 1, "begun": 1, "sent": 1, "refused": 1}


@pytest.mark.parametrize(
    ("name", "start"), [(None, "6437b3ac38465133"), ("sha256", "ba7816bf8f01cfea")]
)
def test_digests_are_those_of_others(file: Path, name: str | None, start: str) -> None:
    """As `b3sum` and `sha256sum` print them, of "abc"."""
    audit = Audit(file, name)
    digest = audit.new_digest()
    digest.update(memoryview(b"abc")[:1])
    digest.update(b"bc")
    audit.close()
    assert digest.hexdigest().startswith(start)
    assert audit.digest == (name or "blake3")


def test_a_record_has_the_time_to_the_microsecond(file: Path) -> None:
    before = datetime.now(UTC)
    write(file, 2)
    for line in lines_of(file):
        text = json.loads(line)["time"]
        time = datetime.fromisoformat(text)
        assert time.isoformat(timespec="microseconds") == text
        assert timedelta() <= time - before.replace(microsecond=0) < timedelta(minutes=1)


def changed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b"peer-1", b"peer-2"), *lines[3:]]


def forged(lines: list[bytes]) -> list[bytes]:
    """Changed, with a digest that fits: the next line gives it away."""
    body = lines[2].rpartition(b',"digest":"')[0].replace(b"peer-1", b"peer-2")
    digest = hashlib.sha256(body + b"}").hexdigest().encode()
    return [*lines[:2], body + b',"digest":"' + digest + b'"}\n', *lines[3:]]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (changed, "line 3 was changed"),
        (forged, "line 4: the line before it is not the one it was written behind"),
        (lambda x: [*x[:2], *x[3:]], "line 3: 1 before it"),
        (lambda x: x[2:], "line 1: 2 before it"),
        (lambda x: [*x[:3], x[1], *x[3:]], "line 4: it has number 1, where 3 is due"),
        (lambda x: [x[0], x[2], x[1], *x[3:]], "line 2: 1 before it"),
        (lambda x: [*x[:4], b"{}\n", *x[4:]], "line 5 was changed"),
        (lambda x: [*x[:4], x[4].replace(b"peer-1", b"peer-2")], "line 5 was changed"),
        (lambda x: [*x, b"{}\n"], "line 6 was changed"),
    ],
)
def test_what_was_tampered_with_is_found(
    file: Path, spoil: Callable[[list[bytes]], list[bytes]], says: str
) -> None:
    lines = write(file)
    assert verify(lines).records == 5
    with pytest.raises(BrokenChainError, match=says):
        verify(spoil(lines))


def test_records_cut_off_at_the_end_are_missed_by_a_digest_noted_before(file: Path) -> None:
    lines = write(file)
    noted = json.loads(lines[3])["digest"]
    assert verify(lines, noted).holds
    assert not verify(lines[:3], noted).holds


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_a_torn_line_is_said_to_be_that_and_the_chain_goes_on(file: Path, kept: int) -> None:
    lines = write(file, 3)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    torn = verify(lines_of(file))
    assert (torn.records, torn.torn_bytes) == (2, len(lines[2][:kept]))
    after = write(file, 2)
    found = verify(after)
    assert (found.records, found.torn_bytes) == (5, 0)
    assert found.events == {"sent": 4, "torn": 1}
    with pytest.raises(BrokenChainError, match="line 3 was changed"):
        verify([*after[:2], after[2][:-1] + b"x\n", *after[3:]])


def test_a_line_that_lacks_its_end_alone_is_whole(file: Path) -> None:
    lines = write(file, 2)
    file.write_bytes(b"".join(lines)[:-1])
    assert verify(write(file, 1)).events == {"sent": 3}


def test_a_torn_first_line(file: Path) -> None:
    file.write_bytes(b'{"schema')
    assert verify(write(file, 1)).events == {"torn": 1, "sent": 1}


def test_a_file_that_ends_in_something_else_is_left_alone(file: Path) -> None:
    file.write_bytes(b"hello\n")
    with pytest.raises(ConfigError, match=r"audit\.file .*no record"):
        Audit(file)
    assert file.read_bytes() == b"hello\n"


def test_two_processes_do_not_share_a_file(file: Path) -> None:
    audit = Audit(file)
    with pytest.raises(ConfigError, match="another process writes it"):
        Audit(file)
    audit.close()
    Audit(file).close()


def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(ConfigError, match=r"audit\.file = '/proc/"):
        Audit(Path("/proc/nothing/audit.jsonl"))


LONG = "\N{SNOWMAN}\U0001f40d\x00" * LONGEST


def test_a_line_is_never_longer_than_is_read_back(file: Path) -> None:
    audit = Audit(file)
    audit.accepted(LONG, LONG, {"task": LONG, "task_file": LONG})
    receiver = Parcel(LONG, LONG, LONG, LONG, 1 << 63, 1 << 63, 1 << 63, 1 << 63)
    for digest in (None, "ab" * 32):
        assert audit.leaving(receiver, digest)
    audit.refused(LONG, LONG)
    audit.close()
    lines = lines_of(file)
    assert len(lines) == 4
    assert max(map(len, lines)) <= LONGEST
    digest = hashlib.sha256(LONG.encode()).hexdigest()
    named = json.loads(lines[1])["receiver"]
    assert named.startswith(LONG[:100])
    assert named.endswith(f"({len(LONG)} characters, sha256 {digest})")
    file.write_bytes(b"".join(lines) + lines[2][:-5])  # the longest, and one that is torn
    assert verify(write(file, 1)).events == {
        "accepted": 1, "begun": 1, "sent": 2, "refused": 1, "torn": 1,
    }  # fmt: skip


@pytest.mark.parametrize("written", [0, 30, None])
def test_without_room_nothing_leaves_and_the_chain_stays_whole(
    file: Path, monkeypatch: pytest.MonkeyPatch, written: int | None
) -> None:
    failures: list[AuditError] = []
    audit = Audit(file, failed=failures.append)
    assert audit.leaving(PARCEL, "a")
    really = os.write

    def full(descriptor: int, data: bytes) -> int:
        if written is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(descriptor, data[:written])

    monkeypatch.setattr(os, "write", full)
    assert not audit.leaving(PARCEL, "b")
    monkeypatch.undo()
    assert not audit.leaving(PARCEL, "c")  # not even when there is room again
    with pytest.raises(AuditError):
        audit.accepted("run", "", {})
    audit.close()
    assert verify(lines_of(file)).records == 1
    (failure,) = failures
    assert failure.exit_code == ExitCode.NOT_RECORDED
    assert "nothing is sent any more" in str(failure)
    assert verify(write(file, 1)).records == 2


def test_a_file_that_was_removed_or_written_by_others_counts_as_unwritable(file: Path) -> None:
    failures: list[AuditError] = []
    for spoil in (file.unlink, partial(append, file)):
        audit = Audit(file, failed=failures.append)
        assert audit.leaving(PARCEL, "a")
        spoil()
        assert not audit.leaving(PARCEL, "b")
        audit.close()
    assert len(failures) == 2


def test_who_is_refused_again_and_again_does_not_fill_the_disk(file: Path) -> None:
    audit = Audit(file)
    for _ in range(500):
        audit.refused("law", "no")
    audit.close()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) < 10
    assert sum(record["count"] for record in records) == 500


def relayswarm(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_tells_whole_torn_and_broken_chains(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write(file, 3)
    assert relayswarm("audit", "verify", str(file)) == 0
    head = json.loads(lines[2])["digest"]
    assert f"3 records, a whole chain (3 sent)\nlast digest: {head}" in capsys.readouterr().out
    assert relayswarm("audit", "verify", str(file), "--contains", head) == 0
    file.write_bytes(b"".join(lines)[:-20])
    assert relayswarm("audit", "verify", str(file)) == 0
    assert "its last line is torn" in capsys.readouterr().err
    assert relayswarm("audit", "verify", str(file), "--contains", head, "--json") == 1
    assert json.loads(capsys.readouterr().out)["whole"] is False
    file.write_bytes(b"".join([lines[0], lines[2]]))
    assert relayswarm("audit", "verify", str(file)) == 1
    assert "line 2: 1 before it" in capsys.readouterr().err
    assert relayswarm("audit", "verify", str(file) + "x") == ExitCode.USAGE
