"""The site builds without a warning, and everything in it leads somewhere without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material", reason="mkdocs-material is in the extra docs")
pytest.importorskip("mkdocstrings", reason="it is in the extra docs")

ROOT = Path(__file__).resolve().parent.parent
LINKS = re.compile(r'<(a|img|script|link|source)\b[^>]*?\b(?:href|src)="([^"]*)"')
TEXT = {"a"}  # may lead elsewhere; everything else would be loaded with the page


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING -" not in said, said
    return folder


def pages(site: Path) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_there_and_in_the_navigation(site):
    docs = ROOT / "docs"
    wanted = {path.relative_to(docs).with_suffix(".html").as_posix() for path in docs.rglob("*.md")}
    wanted |= {"CHANGELOG.html", "CONTRIBUTING.html", "THIRD-PARTY.html"}
    home = (site / "index.html").read_text(encoding="utf-8")
    assert {name for name in wanted if not (site / name).is_file()} == set()
    assert {name for name in wanted - {"index.html"} if f'href="{name}" class="md-nav__link"' not in home} == set()
    assert {path.relative_to(site).parts[0] for path in site.rglob("*.py")} <= {"examples"}


def test_links_and_anchors_resolve(site):
    texts = pages(site)
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    wrong = []
    for path, text in texts.items():
        for _, link in LINKS.findall(text):
            parts = urlsplit(unescape(link))
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            lost = parts.fragment and target in ids and unquote(parts.fragment) not in ids[target]
            if not target.is_file() or (lost and not parts.fragment.startswith("__")):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def test_nothing_is_loaded_from_elsewhere(site):
    for path, text in pages(site).items():
        foreign = [link for tag, link in LINKS.findall(text) if tag not in TEXT and urlsplit(link).netloc]
        assert foreign == [], path.name
    assert len(list(site.rglob("objects.png"))) == 1


def test_the_reference_is_made_from_the_docstrings(site):
    hook, table = ((site / f"{name}.html").read_text(encoding="utf-8") for name in ("api", "api-table"))
    for name in ("apply_hash3d", "Hash3DConfig", "Hash3DCache.views", "Hash3DCache.state_dict"):
        assert re.search(rf'id="hash3d_cuda\.\w+\.{re.escape(name)}"', hook), name
    assert "the number of up-resnets that still run on a hit" in hook
    for name in ("HashTable.append", "make_keys", "QueryResult"):
        assert re.search(rf'id="hash3d_cuda\.\w+\.{re.escape(name)}"', table), name
    assert not re.search(r"\b(class|func|meth|mod):(`|<code>)", hook + table), "a role of Sphinx is left"
    assert not re.search(r",</span></code></b>\s*\(", hook), "two attributes read as one and its type"
    assert re.search(r"<p>serials int64(?:(?!</p>).)*up\s+none", table, re.DOTALL), "an answer read as several"


def test_the_home_page_is_the_readme(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    (title,) = re.findall(r"^# (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)[:1]
    assert f">{title}<" in home and "All pages" in home and "pictures/objects.png" in home


def test_the_page_for_wrong_addresses_leads_home(site):
    """A server answers with it under any address, so its links begin at the server's root."""
    page = (site / "404.html").read_text(encoding="utf-8")
    assert "There is no such page" in page and '<a href="/index.html">' in page
    loaded = [unescape(link) for kind, link in LINKS.findall(page) if kind not in TEXT]
    assert loaded and all(link.startswith("/") and (site / link[1:]).is_file() for link in loaded), loaded
