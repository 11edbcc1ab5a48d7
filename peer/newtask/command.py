"""The command `new`: a folder with a task of one's own that works, to be changed from there.

The template's files are beside this module. TASK_NAME, CLASS_NAME and FOLDER stand in them for what
the new task is called and where it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from relayswarm.errors import ConfigError

TEMPLATE = Path(__file__).parent / "template"
FILES = ("task.py", "run.toml", "README.md")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([._-][A-Za-z0-9]+)*")
LONGEST = 50


def new(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="To be made; its name is the task's.")
    ],
) -> None:
    """Write a commented task that works, a run config and a README into a new folder."""
    write_task(folder)
    typer.echo(f"{folder}: {', '.join(FILES)}")
    typer.echo(f"next: relayswarm check {folder}/run.toml, then relayswarm up {folder}/run.toml")


def write_task(folder: Path) -> None:
    """Write the files. Raises ConfigError if the folder holds something or its name does not do."""
    name = folder.absolute().name
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        problem = "no name for a task"
        remedy = f"begin with a letter, then at most {LONGEST} letters, digits and single _ - ."
        raise ConfigError("FOLDER", str(folder), problem, remedy)
    words = {"TASK_NAME": name, "CLASS_NAME": class_name(name), "FOLDER": str(folder)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError("FOLDER", str(folder), "not empty", "choose a new one")
        for file in FILES:
            text = (TEMPLATE / file).read_text(encoding="utf-8")
            for word, meaning in words.items():
                text = text.replace(word, meaning)
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        problem, remedy = f"cannot be written ({error})", "choose another place"
        raise ConfigError("FOLDER", str(folder), problem, remedy) from error


def class_name(name: str) -> str:
    """`my_task` as a class: `MyTask`."""
    return "".join(part[0].upper() + part[1:] for part in re.split(r"[._-]", name))
