"""Runs the commands of every page of the documentation: `make test-docs`, which names this file;
`make test` has only test_sessions.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.conftest import PAGES
from tests.docs.sessions import Session, commands_of, files_of, reason_not_to_run

RUN = [page for page in PAGES if any(reason_not_to_run(w) is None for w in commands_of(page))]


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_pages_commands_run(page: Path, tmp_path: Path) -> None:
    with Session(tmp_path / "session", commands_of(page), files_of(page)) as session:
        session.run()
    assert session.ran
