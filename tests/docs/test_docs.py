"""What the documentation says is so: links, names, tables, and the commands it shows."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from coordinator.graphs import GRAPH_NAMES
from peer.algorithms import ALGORITHMS
from peer.cli import COMMANDS
from peer.tasks.registry import BUILT_IN
from relayswarm.errors import ExitCode

Blocks = Callable[[str], list[tuple[Path, str]]]
Pages = dict[Path, str]
Run = Callable[..., int]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return set(map(anchor, HEADING.findall(page.read_text(encoding="utf-8"))))


def local_links(pages: Pages) -> Iterator[tuple[Path, str]]:
    for path, text in pages.items():
        for target in LINK.findall(text):
            if not target.startswith(("http://", "https://")):
                yield path, target


def test_links_within_the_repository_lead_somewhere(pages: Pages) -> None:
    broken = []
    for path, target in local_links(pages):
        file, _, fragment = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        if not goal.exists() or (fragment and fragment not in anchors(goal)):
            broken.append((path.name, target))
    assert broken == []


def test_every_page_is_linked_from_the_readme(pages: Pages, root: Path) -> None:
    linked = {target for path, target in local_links(pages) if path.name == "README.md"}
    assert {f"docs/{path.name}" for path in (root / "docs").glob("*.md")} <= linked


def test_pictures_are_small(root: Path) -> None:
    pictures = list((root / "docs" / "images").iterdir())
    assert pictures
    assert {path.name for path in pictures if path.stat().st_size > 200_000} == set()


# --- commands ---------------------------------------------------------------------------------


def test_every_command_is_shown(commands: list[list[str]]) -> None:
    assert {arguments[0] for arguments in commands} >= set(COMMANDS)


def shown_runs(blocks: Blocks) -> list[tuple[str, str]]:
    """(command, output) of every console block."""
    runs = []
    for _, block in blocks("console"):
        for run in re.split(r"^\$ relayswarm ", block, flags=re.MULTILINE)[1:]:
            command, _, output = run.partition("\n")
            runs.append((command, output))
    return runs


def matches(pattern: str, text: str) -> bool:
    """`...` in the pattern stands for anything."""
    parts = map(re.escape, pattern.strip().split("..."))
    return re.search(".*".join(parts), text, re.DOTALL) is not None


def test_commands_print_what_the_pages_show(
    blocks: Blocks, relayswarm: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = shown_runs(blocks)
    assert len(runs) > 10
    for command, output in runs:
        relayswarm(*command.split())
        printed = capsys.readouterr()
        assert matches(output, printed.out + printed.err), command


def test_errors_are_shown_under_their_exit_code(root: Path, relayswarm: Run) -> None:
    text = (root / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sections = re.split(r"^## Exit code (\d+)", text, flags=re.MULTILINE)[1:]
    codes = dict(zip(map(int, sections[::2]), sections[1::2], strict=True))
    assert set(codes) == {code for code in ExitCode if code not in (0, ExitCode.INTERRUPTED)}
    shown = 0
    for code, section in codes.items():
        for command in re.findall(r"^\$ relayswarm (.+)$", section, re.MULTILINE):
            assert relayswarm(*command.split()) == code, command
            shown += 1
    assert shown > 10


# --- the task in own-task.md --------------------------------------------------------------------


def test_the_shown_task_runs(
    blocks: Blocks,
    relayswarm: Run,
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (code,) = (block for path, block in blocks("python") if path.name == "own-task.md")
    (project,) = (block for path, block in blocks("toml") if path.name == "own-task.md")
    entries = tomllib.loads(project)["project"]["entry-points"]["relayswarm.tasks"]
    site = tmp_path / "site"
    information = site / "sine-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "sine.py").write_text(code)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: sine\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (information / "entry_points.txt").write_text("\n".join(["[relayswarm.tasks]", *lines]))
    monkeypatch.syspath_prepend(site)

    (command,) = (arguments for arguments in commands if "sine" in arguments)
    assert relayswarm(*command, "--no-baseline", "--report", "report") == 0

    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["worst"]["loss"] < 0.1  # 0.5 is the loss of a model that knows nothing


# --- names ------------------------------------------------------------------------------------


def code_words(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("concepts.md", [*ALGORITHMS, *GRAPH_NAMES]),
        ("config.md", [*ALGORITHMS, *GRAPH_NAMES, *BUILT_IN]),
    ],
)
def test_every_name_is_listed(root: Path, page: str, names: list[str]) -> None:
    words = code_words((root / "docs" / page).read_text(encoding="utf-8"))
    assert [name for name in names if name not in words] == []


def test_commands_and_exit_codes_have_their_place(root: Path) -> None:
    text = (root / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"\n## {name}\n" not in text] == []
    assert [code for code in ExitCode if f"\n| {code.value} | " not in text] == []


def emitted_events(root: Path) -> set[str]:
    """Names of events in the source, however they are written."""
    spellings = re.compile(r'(?:announce|\.event|self)\(\s*"(\w+)"|"event": "(\w+)"')
    files = [*(root / "peer").rglob("*.py"), *(root / "coordinator").rglob("*.py")]
    found = (pair for file in files for pair in spellings.findall(file.read_text()))
    return {name for pair in found for name in pair if name}


def test_every_event_is_listed(root: Path) -> None:
    events = emitted_events(root)
    assert {"topology", "step", "peer_finished", "gave_up"} <= events  # the search finds them
    text = (root / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in sorted(events) if f"\n| `{name}` | " not in text] == []


def test_fields_of_events_and_report_are_listed(
    root: Path, relayswarm: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--task", "quadratics", "--graph", "chain", "--peers", "3", "--steps", "3", "--json")
    assert relayswarm("simulate", *run, "--set", "evaluation.every=1") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    words = code_words((root / "docs" / "commands.md").read_text(encoding="utf-8"))
    fields = {key for event in events for key in keys(event)} - {"loss", "suboptimality"}
    assert {"swarm_size", "virtual_seconds", "baseline_small_batch", "bytes_sent"} <= fields
    assert sorted(fields - words) == []


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


# --- tables -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(root: Path) -> ModuleType:
    path = root / "tools" / "generate_tables.py"
    spec = importlib.util.spec_from_file_location("generate_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module


def test_tables_are_fresh(tables: ModuleType) -> None:
    remedy = "stale: run make docs"
    for name in tables.FILES:
        text = (tables.DOCS / name).read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"{name} is {remedy}"


def test_tables_hold_every_option_and_every_metric(tables: ModuleType) -> None:
    assert "| `--set` SECTION.KEY=VALUE |" in tables.options_table("up")
    assert "| `--baseline`, `--no-baseline` | on |" in tables.options_table("up")
    assert "| `--json` |" in tables.options_table("status")
    for process in ("peer", "coordinator"):
        rows = tables.metrics_table(process).count("\n| `relayswarm_")
        assert rows == len(list(tables._families(tables._registry(process)))) > 15
    text = (tables.DOCS / "commands.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"<!-- table: options {name} -->" not in text] == []
