"""Hooks of MkDocs: what docs/ links to outside itself becomes part of the site.

Markdown files of the repository's root become pages, README.md the first one; other files are
copied as they are. So every link of the plain files leads somewhere in the site, which `strict`
checks.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files  # only in the environment of `make docs-site`

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md"} | {
    name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
}
SOURCE = "source"
"""Folder of the site with files that are no pages."""

_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files that lie outside docs/."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    texts |= {ROOT / name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
    wanted = {target for path, text in texts.items() for target in _outside(path, text)}
    for name, page in PAGES.items():
        content = _rewritten(texts[ROOT / name], name)
        files.append(File.generated(config, page, content=content))
    for path in sorted(wanted - PAGES.keys()):
        for file in [ROOT / path] if (ROOT / path).is_file() else _listing(ROOT / path):
            place = f"{SOURCE}/{file.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, _raw(place), content=file.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let a page's links lead to where things are in the site."""
    if page.file.src_uri in PAGES.values():
        return markdown  # rewritten when it was added
    return _rewritten(markdown, f"docs/{page.file.src_uri}")


def _outside(path: Path, text: str) -> set[str]:
    """Paths from the root, of what a page links to outside docs/."""
    place = path.relative_to(ROOT).as_posix()
    targets = {_resolved(place, found[2]) for found in _LINK.finditer(text)}
    return {t for t in targets if t and not t.startswith("docs/") and (ROOT / t).exists()}


def _resolved(page: str, target: str) -> str:
    """A link of a page as a path from the root; empty if it leads to elsewhere."""
    if re.match(r"[a-z]+:", target):
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _rewritten(text: str, page: str) -> str:
    def leading(found: re.Match[str]) -> str:
        target = _resolved(page, found[2])
        return f"{found[1]}{_place(target) if target else found[2]}{found[3] or ''}{found[4]}"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(leading, part) for part in parts)


def _place(target: str) -> str:
    """Where a path from the root is, seen from the site's top level, where all pages are."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if (ROOT / target).is_dir():
        return f"{SOURCE}/{_listing(ROOT / target)[0].relative_to(ROOT).as_posix()}"
    return _raw(f"{SOURCE}/{target}")


def _listing(folder: Path) -> list[Path]:
    """Files of a folder, of which a link to it leads to the first."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _raw(place: str) -> str:
    """Markdown that is not a page of the site would become one."""
    return f"{place}.txt" if place.endswith(".md") else place
