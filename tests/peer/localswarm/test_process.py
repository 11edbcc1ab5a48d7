from __future__ import annotations

import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from peer.localswarm.process import Child, Ended, Inbox, Said, environment, own_command

DEADLINE_S = 30.0

Command = Callable[[str], list[str]]


def started(command: list[str], tmp_path: Path) -> tuple[Child, Inbox]:
    inbox: Inbox = queue.Queue()
    return Child("child", command, tmp_path / "child.log", inbox), inbox


def test_events_come_in_order_and_then_the_end(script_command: Command, tmp_path: Path) -> None:
    child, inbox = started(
        script_command(
            """
            import json, sys
            print(json.dumps({"event": "one", "value": 1}))
            print("a task's own words")
            print(json.dumps(["not", "an", "event"]))
            print(json.dumps({"event": "two"}))
            print("on standard error", file=sys.stderr)
            sys.exit(7)
            """
        ),
        tmp_path,
    )
    items = [inbox.get(timeout=DEADLINE_S) for _ in range(3)]
    assert items == [
        Said("child", {"event": "one", "value": 1}),
        Said("child", {"event": "two"}),
        Ended("child", 7),
    ]
    assert child.last_lines() == ["on standard error"]
    child.end(DEADLINE_S)


def test_only_the_end_of_a_long_log_is_shown(script_command: Command, tmp_path: Path) -> None:
    child, _ = started(
        script_command("import sys\nfor k in range(100): print(k, file=sys.stderr)"), tmp_path
    )
    child.end(DEADLINE_S)
    assert child.last_lines() == ["95", "96", "97", "98", "99"]


def test_a_child_may_say_its_last_words_when_told_to_end(
    script_command: Command, tmp_path: Path
) -> None:
    child, inbox = started(
        script_command(
            """
            import json, signal, sys
            def end(*_):
                print(json.dumps({"event": "last words"}), flush=True)
                sys.exit(0)
            signal.signal(signal.SIGTERM, end)
            print(json.dumps({"event": "ready"}), flush=True)
            sys.stdin.read()
            """
        ),
        tmp_path,
    )
    assert inbox.get(timeout=DEADLINE_S) == Said("child", {"event": "ready"})
    child.terminate()
    child.end(DEADLINE_S)
    assert not child.is_alive
    assert inbox.get_nowait() == Said("child", {"event": "last words"})
    assert inbox.get_nowait() == Ended("child", 0)


def test_a_child_that_will_not_end_is_killed(script_command: Command, tmp_path: Path) -> None:
    child, inbox = started(
        script_command(
            """
            import json, signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(json.dumps({"event": "ready"}), flush=True)
            while True: signal.pause()
            """
        ),
        tmp_path,
    )
    inbox.get(timeout=DEADLINE_S)
    child.terminate()
    child.end(0.0)
    assert inbox.get_nowait() == Ended("child", -signal.SIGKILL)


def test_children_run_our_own_code_on_one_thread() -> None:
    script = "import os, peer, sys; print(peer.__file__, os.environ['OMP_NUM_THREADS'])"
    command = [sys.executable, "-P", "-c", script]
    import peer

    output = subprocess.check_output(command, env=environment(), text=True, cwd="/")
    assert output.split() == [peer.__file__, "1"]


def test_a_child_ends_when_its_parent_is_killed(script_command: Command, tmp_path: Path) -> None:
    """SIGKILL leaves the parent no chance to end its children: they must notice themselves."""
    log = tmp_path / "grandchild.log"
    parent = subprocess.Popen(
        script_command(
            f"""
            import queue
            from pathlib import Path
            from peer.localswarm.process import Child, own_command
            inbox = queue.Queue()
            command = own_command("coordinator", "--listen", "127.0.0.1:0", "--json")
            child = Child("grandchild", command, Path({str(log)!r}), inbox)
            inbox.get()
            print(child.pid, flush=True)
            inbox.get()
            inbox.get()
            """
        ),
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert parent.stdout
    with parent.stdout:
        grandchild = psutil.Process(int(parent.stdout.readline()))
        assert "peer.cli" in grandchild.cmdline()
        parent.kill()
        parent.wait(DEADLINE_S)
    grandchild.wait(DEADLINE_S)
    assert not grandchild.is_running()


def test_the_command_of_a_child_is_this_python(tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text("raise SystemExit('a foreign module of that name')")
    with subprocess.Popen(
        own_command("--version"),
        stdin=subprocess.PIPE,  # open as long as we are there: the lifeline
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
        cwd=tmp_path,
    ) as child:
        assert child.stdout
        assert child.stdout.read().startswith("relayswarm ")
