"""Hooks of mkdocs.yml: pages are written to be read in the repository; here their links are made to work on the site.

The home page is the README with the list of pages after it. A file outside docs/ that a page links to is copied to the
site, under its path in the repository; if it is Markdown it becomes a page. A new page in docs/ needs no entry: it
appears under "More" until its name stands in ``SECTIONS``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SECTIONS = {
    "Start": ["index", "concepts", "decide", "generate", "hook", "table", "host-tier", "scaling"],
    "In other code": [
        "adapters",
        "pipelines",
        "systems/index",
        "systems/threestudio",
        "systems/gaussiandreamer",
        "systems/dreamgaussian",
        "systems/stable-dreamfusion",
    ],
    "What to expect": [
        "plan",
        "tune",
        "recipes",
        "reuse",
        "limits",
        "quality",
        "metrics",
        "benchmarks",
        "reproduce",
        "claims",
    ],
    "Reference": ["api", "api-table", "api-hook", "file-format"],
    "Project": ["development", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD-PARTY.md"],
}
_LINK = re.compile(r"(!?\[[^\]]*\]\()(?!\w+:|#)([^)#\s]+)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r":?\b(?:class|func|meth|mod|attr|data):<code>[~.]*([^<]*)</code>")
# "hits, misses: ..." among a class's attributes is read as hits, of type misses
_TWO = re.compile(r"(,</[a-z]+></code></b>\s*)\(<code><[^>]*>(\w+)</[a-z]+></code>\)")


def on_config(config: Any) -> Any:
    """Lists the pages that there are, in the order of ``SECTIONS``."""
    pages = [path.relative_to(DOCS) for path in sorted(DOCS.rglob("*.md"))]
    there = {page.with_suffix("").as_posix(): page.as_posix() for page in pages}
    config.nav = []
    for section, names in SECTIONS.items():
        known = [there.pop(name, None) or (name if (ROOT / name).is_file() else None) for name in names]
        config.nav.append({section: [name for name in known if name is not None]})
    if there:
        config.nav.append({"More": list(there.values())})
    config.nav = [section for section in config.nav if all(section.values())]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds what lies outside docs/."""
    extra = [ROOT / name for names in SECTIONS.values() for name in names if (ROOT / name).is_file()]
    for path in _linked([ROOT / "README.md", *extra, *DOCS.rglob("*.md")]):
        if not path.is_relative_to(DOCS):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are on the site."""
    if page.file.src_uri == "index.md":
        home = _moved((ROOT / "README.md").read_text(encoding="utf-8"), ROOT, "index.md")
        return f"{home}\n\n## All pages\n\n" + _moved(markdown.partition("\n")[2], DOCS, "index.md")
    source = Path(page.file.abs_src_path)
    return _moved(markdown, source.parent, page.file.src_uri)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings name classes with Sphinx's roles, where the name is enough here, and two attributes at once."""
    return _TWO.sub(r"\1<b><code>\2</code></b>", _ROLE.sub(r"<code>\1</code>", html))


def _linked(pages: list[Path]) -> list[Path]:
    """The pages and every file that one of them links to, in the repository, sorted."""
    found: set[Path] = set()
    waiting = [page for page in pages if page != ROOT / "README.md"] + [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        found.add(page)
        if page.suffix == ".md":
            for match in _LINK.finditer(_FENCE.sub("", page.read_text(encoding="utf-8"))):
                target = _target(page.parent, match[2])
                if target is not None and target not in found:
                    waiting.append(target)
    return sorted(found - {ROOT / "README.md"})


def _target(folder: Path, link: str) -> Path | None:
    """The file in the repository that ``link`` means, seen from ``folder``."""
    path = Path(os.path.normpath(folder / link))
    path = path / "README.md" if path.is_dir() else path
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def _moved(markdown: str, folder: Path, uri: str) -> str:
    """``markdown`` from ``folder`` of the repository with links that lead to the same files from page ``uri``."""

    def replace(match: re.Match[str]) -> str:
        target = _target(folder, match[2])
        if target is None:
            return match[0]
        if target == ROOT / "README.md":
            place = "index.md"
        else:
            place = target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT).as_posix()
        return match[1] + Path(os.path.relpath(place, Path(uri).parent)).as_posix()

    return _LINK.sub(replace, markdown)
