"""A task in a file of its own, which `task.file` names, and where in it something went wrong.

The file is a Python program: whoever has it loaded runs it. It is loaded from where this machine's
operator says alone (`peer.parts`). Modules beside it can be imported by it, after all others.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import linecache
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from relayswarm.errors import ConfigError, RelayswarmError, TaskError
from relayswarm.task import Task

PARTS = ("optimizer_defaults", "model", "data", "loss", "gradients", "evaluate")
"""Methods of a task that are called."""

_CONTRACT = inspect.getfile(Task)  # what a task does not override is not its own

_LONGEST = 300  # characters of an exception's text that are shown


def task_class(path: Path, name: str) -> type[Task]:
    """The task called `name` in a file. Raises TaskError or ConfigError."""
    module = _module(path)
    known = {kind.name: kind for kind in _tasks_in(module)}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f"tasks in it: {', '.join(sorted(known))}" if known else "it has none"
    remedy = f"{hint}{listed}; a class derived from relayswarm.Task needs name = {name!r}"
    raise ConfigError("task.name", name, f"no task of this name in {shown(path)}", remedy)


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        remedy = "give the path of a Python file, from the folder of the run config"
        raise ConfigError("task.file", str(path), "no such file", remedy)
    stat = path.stat()
    return _load(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _load(path: Path, *version: int) -> ModuleType:
    """Once for each version of the file: peers that share a process share the module, too."""
    digest = hashlib.sha256(f"{path}{version}".encode()).hexdigest()[:12]
    name = f"relayswarm_task_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("task.file", str(path), "no Python file", "give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module  # where annotations in it are looked up
    linecache.checkcache(str(path))
    try:
        with located(Home(path, {})):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _tasks_in(module: ModuleType) -> Iterator[type[Task]]:
    for kind in vars(module).values():
        own = isinstance(kind, type) and kind.__module__ == module.__name__
        if own and issubclass(kind, Task) and isinstance(getattr(kind, "name", None), str):
            yield kind


def require_complete(kind: type[Task]) -> None:
    """Raise TaskError, at the class, if a method is missing that every task needs."""
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        calls = ", ".join(f"{name}{inspect.signature(getattr(kind, name))}" for name in missing)
        problem, remedy = f"lacks {calls}", "write it; relayswarm.Task says what it returns"
        raise TaskError(home_of(kind).place(), "task", kind.__name__, problem, remedy)


# --- where something went wrong -----------------------------------------------------------------


class Home:
    """Where a task's code is: its file, what is beside it, and the first lines of its methods.

    `returned` tells for a method's code the line at which it last returned, as far as it is known.
    """

    def __init__(self, path: Path, methods: dict[str, CodeType], line: int = 1) -> None:
        self._path, self._methods, self._line = path, methods, line
        self.returned: dict[CodeType, int] = {}

    def place(self, part: str | None = None) -> str:
        """FILE:LINE of what a method returned last, else of the method, else of the class."""
        code = self._methods.get(part or "")
        if code is None:
            return f"{shown(self._path)}:{self._line}"
        return f"{shown(Path(code.co_filename))}:{self.returned.get(code, code.co_firstlineno)}"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note where methods return."""
        codes = set(self._methods.values())

        def note(frame: object, event: str, value: object) -> None:
            del value
            code = getattr(frame, "f_code", None)
            if event == "return" and code in codes:
                self.returned.pop(code, None)  # so that the last one stands last
                self.returned[code] = frame.f_lineno  # type: ignore[attr-defined]

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(before)

    def culprit(self, trace: TracebackType | None) -> traceback.FrameSummary | None:
        """The innermost line of a traceback that is the task's."""
        own = [frame for frame in traceback.extract_tb(trace) if self._owns(frame.filename)]
        return own[-1] if own else None

    def part_of(self, trace: TracebackType | None) -> str | None:
        """Which of the task's methods was called, or else returned last."""
        names = {code: name for name, code in self._methods.items()}
        called = [frame.f_code for frame, _ in traceback.walk_tb(trace)]
        return next(
            (names[code] for code in (*called, *reversed(self.returned)) if code in names), None
        )

    def _owns(self, filename: str) -> bool:
        path = Path(filename)
        if path == self._path or filename in {c.co_filename for c in self._methods.values()}:
            return True
        beside = self._path.parent
        return path.is_relative_to(beside) and not {"site-packages", "lib"} & set(path.parts)


def home_of(kind: type[Task]) -> Home:
    """Where the code of a class of tasks is."""
    found = ((name, _code(getattr(kind, name, None))) for name in PARTS)
    methods = {name: code for name, code in found if code and code.co_filename != _CONTRACT}
    try:
        path, (_, line) = Path(inspect.getfile(kind)), inspect.getsourcelines(kind)
    except (OSError, TypeError):  # made at run time
        return Home(Path(kind.__module__), methods)
    return Home(path, methods, line)


def _code(function: object) -> CodeType | None:
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return code if isinstance(code, CodeType) else None


@contextmanager
def located(home: Home, remedy: str = "mend that line") -> Iterator[None]:
    """Turn what goes wrong in a task's code into a TaskError that names its line."""
    try:
        yield
    except (TaskError, MemoryError):
        raise
    except SyntaxError as error:
        place = f"{shown(Path(error.filename or '?'))}:{error.lineno}"
        text = (error.text or "").strip()
        raise TaskError(place, "task.file", text, f"not Python ({error.msg})", remedy) from error
    except ConfigError as error:
        if not error.field.startswith("task."):
            raise  # a setting's fault
        part = error.field.split(".")[1]
        line = home.culprit(error.__traceback__)
        place = _place(line) if line else home.place(part)
        raise TaskError(place, error.field, error.value, error.problem, error.remedy) from error
    except RelayswarmError:
        raise
    except Exception as error:  # whatever a task raises
        raise _raised(home, error, remedy) from error


def _raised(home: Home, error: Exception, remedy: str) -> TaskError:
    part = home.part_of(error.__traceback__)
    line = home.culprit(error.__traceback__)
    field = f"task.{part}" if part else "task.file"
    text = " ".join(str(error).split())
    problem = f"{type(error).__name__}: {text[:_LONGEST]}" if text else type(error).__name__
    if line is None:  # what it gave went wrong later
        place = home.place(part)
        file, _, number = place.rpartition(":")
        text = linecache.getline(str(Path(file).absolute()), int(number)).strip()
        return TaskError(place, field, text, problem, remedy)
    return TaskError(_place(line), field, (line.line or "").strip(), problem, remedy)


def _place(line: traceback.FrameSummary) -> str:
    return f"{shown(Path(line.filename))}:{line.lineno}"


def shown(path: Path) -> str:
    """A path for people: from the current folder, if it is in there."""
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
