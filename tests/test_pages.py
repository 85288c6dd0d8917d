"""The book as a reader's browser sees it: built strictly, every page there, and no request leaves it."""
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from .test_book import BOOK, ROOT, contents

pytestmark = pytest.mark.xdist_group("pages")  # one build for all
LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data"),
         ("link", "href")}
HARMLESS_LINKS = {"canonical", "next", "prev", "search", "index", "author"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def html(tmp_path_factory) -> Path:
    """The built pages, built without torch."""
    no_torch = tmp_path_factory.mktemp("no_torch")
    (no_torch / "torch.py").write_text("raise RuntimeError('the book must build without torch')")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "book/", "--all", "-W", "--keep-going"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(no_torch)})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return BOOK / "_build" / "html"


class Requests(HTMLParser):
    """What a page loads by itself."""

    def __init__(self, text: str):
        super().__init__()
        self.urls: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "link" and attributes.get("rel") in HARMLESS_LINKS:
            return
        self.urls += [value for key, value in attributes.items() if (tag, key) in LOADS and value]


def pages(html: Path) -> list[Path]:
    return [page for page in html.rglob("*.html") if "_static" not in page.parts]  # templates of the theme lie there


def test_every_page_is_built(html):
    assert [page for page in contents() if not (html / f"{page}.html").is_file()] == []


def test_no_request_leaves_a_page(html):
    outside = {f"{page.relative_to(html)}: {url}" for page in pages(html)
               for url in Requests(page.read_text()).urls if re.match(r"(https?:)?//", url)}
    outside |= {f"{sheet.relative_to(html)}: {url}" for sheet in html.rglob("*.css")
                for url in re.findall(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")]+)", sheet.read_text())}
    assert not outside


def test_what_a_page_loads_is_there(html):
    missing = {f"{page.relative_to(html)}: {url}" for page in pages(html)
               for url in Requests(page.read_text()).urls
               if not url.startswith(("data:", "#")) and not (page.parent / url.split("?")[0].split("#")[0]).exists()}
    assert not missing


def test_links_inside_the_book_lead_somewhere(html):
    broken = set()
    for page in pages(html):
        for url in re.findall(r'<a [^>]*href="([^"#]+\.html)(?:#[^"]*)?"', page.read_text()):
            if not url.startswith(("http", "//")) and not (page.parent / url).exists():
                broken.add(f"{page.relative_to(html)}: {url}")
    assert not broken


def browse(url: str, folder: Path) -> tuple[str, set[str]]:
    """(the page after its scripts have run, the addresses outside that it asked) in a Chromium that reaches no host."""
    log = folder / "net.json"
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}",
         "--virtual-time-budget=5000", "--dump-dom", url], capture_output=True, text=True, timeout=120)
    # "null" is a file's origin; what the browser asks for itself has none
    return done.stdout, set(re.findall(r'"initiator":"null".*?"url":"(https?://[^"]+)"', log.read_text()))


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@needs_chromium
def test_a_request_would_be_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://a.invalid/1"><script>fetch("https://b.invalid/2")</script>')
    assert browse(page.as_uri(), tmp_path)[1] == {"http://a.invalid/1", "https://b.invalid/2"}


@needs_chromium
@pytest.mark.parametrize("page", contents())
def test_a_browser_draws_a_page_and_asks_nobody(html, tmp_path, page):
    text, asked = browse((html / f"{page}.html").as_uri(), tmp_path)
    assert re.search(r"<h1>[^<]+", text)
    assert "mjx-merror" not in text
    assert not asked
