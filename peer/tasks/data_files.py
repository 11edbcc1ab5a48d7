"""Where built-in tasks look for files: the data folder, or its subfolder of the task's name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relayswarm.errors import ConfigError, DataError
from relayswarm.task import Site


def data_folder(site: Site, task: str) -> Path:
    """This machine's data folder. Raises DataError where none was named."""
    if site.data_dir is None:
        raise DataError("data_dir", None, f"{task} needs files", "name the folder that holds them")
    return site.data_dir


def find(folder: Path, places: Sequence[str], names: Sequence[str]) -> Path | None:
    """The first of these files or folders that is in `folder` or one of the places in it."""
    candidates = (folder / place / name for place in ("", *places) for name in names)
    return next((path for path in candidates if path.exists()), None)


def locate(folder: Path, task: str, names: Sequence[str], remedy: str) -> Path:
    """As `find`, in the folder and its subfolder of the task's name. Raises DataError that says
    what was looked for."""
    found = find(folder, [task], names)
    if found is None:
        problem = f"neither it nor its subfolder {task} has {' or '.join(names)}"
        raise DataError("data_dir", str(folder), problem, remedy)
    return found


def require_common(site: Site, task: str) -> None:
    """Raise ConfigError if the data are to be a site's own: this task's are the same everywhere."""
    if site.is_local:
        problem = f"the data of {task} are the same everywhere, and lie at no site"
        raise ConfigError("data.partition", "local", problem, "set it to even or dirichlet")
