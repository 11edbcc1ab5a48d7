"""Nothing that comes over the wire, or from a file, becomes code.

No module reads a format that can carry code, and a coordinator's run config has a peer import
nothing but what is built in or what the peer's own operator has named.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import coordinator
import peer
import relayswarm
from peer.announce import Announcer
from peer.metrics import PeerMetrics
from peer.parts import BY_TASK, Parts, PeerOptions
from peer.transport.coordinator_client import Joined
from relayswarm.errors import ConfigError

ROOTS = [Path(package.__file__).parent for package in (peer, coordinator, relayswarm)]

CARRIES_CODE = {"cloudpickle", "code", "dill", "imp", "joblib", "marshal", "pickle", "shelve"}
RUNS_CODE = {"__import__", "compile", "eval", "exec"}
LOADS = {"load", "loads"}  # of these modules what is loaded may be code
UNSAFE_LOADERS = {"torch", "np", "numpy", "yaml"}
BY_NAME = {"entry_points", "exec_module", "import_module", "load_module", "run_path"}
MAY_IMPORT = {  # by name, and where the name comes from
    "peer/cli.py": "this program's own commands",
    "peer/offers.py": "entry points, once they are allowed",
    "peer/tasks/files.py": "the file that this machine's operator has named",
    "peer/tasks/registry.py": "the built-in tasks",
    "relayswarm/__init__.py": "this package's own modules",
}


def places(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What of a module could run what it was not written to run, by line."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            yield from called(node)
        for name in names:
            if name.split(".")[0] in CARRIES_CODE:
                yield node.lineno, f"imports {name}"


def called(node: ast.Call) -> Iterator[tuple[int, str]]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in RUNS_CODE:
        yield node.lineno, f"calls {function.id}"
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if name in BY_NAME:
        yield node.lineno, name
    if not isinstance(function, ast.Attribute):
        return
    module = function.value.id if isinstance(function.value, ast.Name) else ""
    refused = any(
        keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True) is False
        for keyword in node.keywords
    )
    if module in UNSAFE_LOADERS and function.attr in LOADS and not refused:
        yield node.lineno, f"calls {module}.{function.attr}"
    if module == "os" and function.attr in ("system", "popen"):
        yield node.lineno, f"calls os.{function.attr}"
    if any(keyword.arg == "shell" for keyword in node.keywords):
        yield node.lineno, "runs a shell"


def test_no_module_reads_what_can_carry_code() -> None:
    found, modules = [], 0
    for root in ROOTS:
        for path in root.rglob("*.py"):
            modules += 1
            name = str(path.relative_to(root.parent))
            for line, what in places(ast.parse(path.read_text(encoding="utf-8"))):
                by_name = what in BY_NAME and name in MAY_IMPORT
                found += [] if by_name else [f"{name}:{line} {what}"]
    assert modules > 150
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "importlib.import_module(name)",
        "spec.loader.exec_module(module)",
        "runpy.run_path(path)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert list(places(ast.parse(line)))


# --- a hostile coordinator ------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package on this peer's path that offers a task and an algorithm, `theirs`; importing it
    leaves a file behind."""
    mark = tmp_path / "imported"
    text = f"open({str(mark)!r}, 'w').close()\n\nclass Theirs: ...\n"
    (tmp_path / "theirs_package.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        offered = EntryPoint("theirs", "theirs_package:Theirs", group)
        return [offered] if name in (None, offered.name) else []

    monkeypatch.setattr("peer.offers.entry_points", entry_points)
    yield mark
    sys.modules.pop("theirs_package", None)


def be_told(config: str, **options: Any) -> None:
    """Be a peer whose coordinator sends this run config."""
    told = Joined(1, "run", "peer-0", config, shard=0, lease_s=1.0, donors=())
    peer_options = PeerOptions("127.0.0.1:1", **options)
    with Parts(peer_options, BY_TASK, told, PeerMetrics(), Announcer(speaks=False)):
        pass


NAMES = [
    "theirs",
    "theirs_package",
    "theirs_package:Theirs",
    "theirs_package.Theirs",
    "peer.tasks.digits:Digits",
    "os:system",
    "builtins:exec",
    "../theirs_package",
    "digits; import theirs_package",
    "",
    "\x00",
]


@pytest.mark.parametrize("section", ["task", "algorithm"])
@pytest.mark.parametrize("name", NAMES)
def test_a_coordinator_names_nothing_that_is_then_imported(
    theirs: Path, section: str, name: str
) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError):
        be_told(f"[{section}]\nname = {json.dumps(name)}")
    assert not theirs.exists()
    assert "theirs_package" not in set(sys.modules) - before


@pytest.mark.parametrize("section", ["task", "algorithm"])
def test_what_the_operator_has_named_is_imported(theirs: Path, section: str) -> None:
    """The package is then found wanting: but the mark shows that the test above can fail."""
    with pytest.raises(ConfigError, match=r"not an? (task|algorithm)"):
        be_told(f'[{section}]\nname = "theirs"', **{f"allow_{section}s": ("theirs",)})
    assert theirs.exists()


def test_a_coordinator_names_no_file_that_is_then_loaded(theirs: Path, tmp_path: Path) -> None:
    file = json.dumps(str(tmp_path / "theirs_package.py"))
    with pytest.raises(ConfigError, match="none has been allowed here; if you have that file"):
        be_told(f'[task]\nname = "theirs"\nfile = {file}')
    assert not theirs.exists()


def test_the_operators_file_is_loaded_in_the_place_of_the_coordinators(
    theirs: Path, tmp_path: Path
) -> None:
    file = json.dumps(str(tmp_path / "theirs_package.py"))
    own = tmp_path / "own.py"
    own.write_text(f"open({str(tmp_path / 'own_loaded')!r}, 'w').close()\n")
    with pytest.raises(ConfigError, match=r"no task of this name in .*own\.py"):
        be_told(f'[task]\nname = "theirs"\nfile = {file}', task_file=own)
    assert (tmp_path / "own_loaded").exists()
    assert not theirs.exists()


def test_an_operators_file_is_not_loaded_for_a_run_without(theirs: Path, tmp_path: Path) -> None:
    """Nor does a file let in a package."""
    with pytest.raises(ConfigError, match="has not been allowed here"):
        be_told('[task]\nname = "theirs"', task_file=tmp_path / "theirs_package.py")
    assert not theirs.exists()


@pytest.mark.parametrize(
    "config",
    [
        '[task.options]\nmodel = "theirs_package:Theirs"',
        '[algorithm.options]\nfactory = "theirs_package:Theirs"',
        '[optimizer]\nname = "theirs_package.Theirs"',
        '[topology]\ngraph = "file"\nfile = "/etc/passwd"\nplugin = "theirs_package"',
        'imports = ["theirs_package"]',
        '[task]\nname = "digits"\nmodule = "theirs_package"',
    ],
)
def test_no_other_field_of_a_run_config_names_code(theirs: Path, config: str) -> None:
    with pytest.raises(ConfigError):
        be_told(config)
    assert not theirs.exists()
