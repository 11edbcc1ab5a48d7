"""A newcomer's session, as the README has it: from a clone to a model that four peers train."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

from relayswarm.variables import LIFELINE


@pytest.fixture
def session(root: Path) -> list[str]:
    """The commands, one a line."""
    text = (root / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```bash\n(git clone .*?)^```$", text, re.DOTALL | re.MULTILINE)
    return found.splitlines()


def clone(root: Path, goal: Path) -> None:
    """As `git clone` of this folder, with what is changed in it and not committed yet."""
    subprocess.run(["git", "clone", "-q", str(root), str(goal)], check=True)
    changed = ["git", "-C", str(root), "ls-files", "-z", "-m", "-o", "--exclude-standard"]
    for name in subprocess.check_output(changed, text=True).split("\0"):
        if name and (root / name).is_file():
            (goal / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, goal / name)


def install(folder: Path) -> Mapping[str, str]:
    """What `make install` would have made, from the packages of the tests' own environment. Ready
    for it to find that there is nothing left to do."""
    environment = folder / ".venv"
    venv.create(environment, symlinks=True)
    (libraries,) = environment.glob("lib/python3.*/site-packages")
    own = [str(folder), *site.getsitepackages()]
    inherited = [path for path in sys.path if path.endswith("site-packages") and path not in own]
    (libraries / "newcomer.pth").write_text("\n".join([*own, *inherited]))
    script = environment / "bin" / "relayswarm"
    script.write_text(f"#!{environment}/bin/python\nfrom peer.cli import main\nmain()\n")
    script.chmod(0o755)
    for mark in (".made", ".runtime"):  # later than what they depend on
        (environment / mark).touch()
    inherited_variables = {name: value for name, value in os.environ.items() if name != LIFELINE}
    return {
        **inherited_variables,
        "VIRTUAL_ENV": str(environment),
        "PATH": os.pathsep.join([f"{environment}/bin", os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.timeout(300)  # seven processes import torch, perhaps on a busy machine
def test_five_commands_lead_to_a_model_of_ones_own(
    session: list[str], root: Path, tmp_path: Path
) -> None:
    fetch, *rest = session
    assert len(session) <= 5
    assert shlex.split(fetch)[:2] == ["git", "clone"]
    assert fetch.endswith("&& cd relayswarm")
    folder = tmp_path / "relayswarm"
    clone(root, folder)
    environment = install(folder)
    for line in rest:
        ended = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert ended.returncode == 0, (line, ended.stdout, ended.stderr)

    report = json.loads((folder / "reports" / "my_task" / "report.json").read_text())
    manifest = json.loads((folder / "reports" / "my_task" / "manifest.json").read_text())
    assert manifest["config"]["task"]["file"] == str(folder / "my_task" / "task.py")
    assert manifest["engine"] == "processes"
    assert [peer["steps"] for peer in report["peers"]] == [200] * 4
    assert report["worst"]["accuracy"] > 0.93  # 0.65 is the share of the larger class
    assert (folder / "reports" / "my_task" / "model.safetensors").exists()
    assert (folder / "reports" / "my_task" / "report.html").exists()
    history = json.loads((folder / "reports" / "my_task" / "history.json").read_text())
    happened = [one["event"] for one in history["happenings"]]
    assert happened.count("member_joined") == happened.count("peer_finished") == 4
    assert "topology" in happened
