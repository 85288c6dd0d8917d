"""The book as a reader's browser sees it: built strictly, every page there, nothing loaded from outside, every link and
anchor leads somewhere; no message on the console, no sideways scroll on a phone, words for every picture, and nothing
serious for axe-core, in light and in dark.

`tests/vendor/axe` is axe-core 4.14.1 (MPL-2.0, its license is beside it).
"""
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from .test_book import BOOK, NOTEBOOKS, ROOT, contents

LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data"),
         ("link", "href")}
HARMLESS_LINKS = {"canonical", "next", "prev", "search", "index", "author"}
AXE = Path(__file__).parent / "vendor" / "axe" / "axe.min.js"
CODE_WIDTH = 88  # characters
STANDARDS = ["wcag2a", "wcag2aa", "best-practice"]
PHONE, DESK = {"width": 390, "height": 800}, {"width": 1400, "height": 900}


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


class Page(HTMLParser):
    """What a page loads by itself, where its links lead, and the places in it that a link can name."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.loads, self.links, self.ids = path, [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag != "link" or attributes.get("rel") not in HARMLESS_LINKS:
            self.loads += [value for key, value in attributes.items() if (tag, key) in LOADS and value]


@pytest.fixture(scope="session")
def pages(html) -> dict[Path, Page]:
    """Every built page; templates of the theme lie in _static."""
    return {path.resolve(): Page(path) for path in html.rglob("*.html") if "_static" not in path.parts}


def test_every_page_is_built(html):
    assert [page for page in contents() if not (html / f"{page}.html").is_file()] == []


def test_no_request_leaves_a_page(html, pages):
    outside = {f"{page.path.relative_to(html)}: {url}" for page in pages.values()
               for url in page.loads if re.match(r"(https?:)?//", url)}
    outside |= {f"{sheet.relative_to(html)}: {url}" for sheet in html.rglob("*.css")
                for url in re.findall(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")]+)", sheet.read_text())}
    assert not outside


def test_what_a_page_loads_is_there(html, pages):
    missing = {f"{page.path.relative_to(html)}: {url}" for page in pages.values() for url in page.loads
               if not url.startswith(("data:", "#"))
               and not (page.path.parent / url.split("?")[0].split("#")[0]).exists()}
    assert not missing


def test_links_inside_the_book_lead_somewhere_anchors_included(html, pages):
    broken = set()
    for path, page in pages.items():
        for url in page.links:
            if re.match(r"[a-z]+:|//", url):
                continue
            name, _, place = url.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (place and target in pages and place not in pages[target].ids):
                broken.add(f"{page.path.relative_to(html)}: {url}")
    assert not broken


def test_every_box_and_every_marked_claim_is_a_link(html):
    """A part of a diagram whose page the book does not have loses its link: there must be none."""
    text = (html / "diagrams.html").read_text()
    lost = set(re.findall(r'<a aria-label="([^"]*)"', text))
    assert not lost
    assert text.count('href="code/parallel.html#parallel-linear-py"') > 8


def test_a_file_of_the_package_leads_to_its_code_page(html):
    text = (html / "setup_gpu.html").read_text()
    assert re.search(r'href="code/bench\.html#bench-two-hosts-py"[^>]*>\s*<span[^>]*>two_hosts\.py', text)


def test_a_terms_first_use_is_marked_once_in_words_only(html):
    text = (html / "quickstart.html").read_text()
    uses = re.findall(r'<a class="glossary-term[^"]*" href="glossary\.html#(term-[^"]*)" title="[^"]{20,}">', text)
    assert uses and len(uses) == len(set(uses))
    assert not re.search(r"<(h\d|pre|code)[^>]*>(?:(?!</\1>).)*glossary-term", text, re.S)
    assert "glossary-term" not in (html / "code" / "parallel.html").read_text()


def test_code_of_ranks_is_highlighted_as_python():
    """`%%ranks` before Python is no error to the lexer of chapters' cells."""
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Error, Keyword

    tokens = list(get_lexer_by_name("python").get_tokens("%%ranks 2\nimport torch\nx = torch.ones(3)  # (3,)\n"))
    assert Keyword.Namespace in {kind for kind, _ in tokens} and Error not in {kind for kind, _ in tokens}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_visible_line_of_code_is_wider_than_a_page(path):
    hidden = {"hide-input", "remove-input", "hide-cell", "remove-cell"}
    wide = [line for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
            and not hidden & set(cell.metadata.get("tags", ())) for line in cell.source.splitlines()
            if len(line) > CODE_WIDTH]
    assert not wide


class Visit:
    """One tab, and what its pages said and asked for."""

    def __init__(self, browser):
        self.tab = browser.new_context(viewport=DESK, color_scheme="light").new_page()
        self.said, self.asked = [], []
        self.tab.route(re.compile(r"^https?://"), lambda route: (self.asked.append(route.request.url), route.abort()))
        self.tab.on("console", lambda m: self.said.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))

    def open(self, path: Path):
        self.said.clear()
        self.asked.clear()
        self.tab.set_viewport_size(DESK)
        self.tab.goto(path.as_uri())
        return self.tab


@pytest.fixture(scope="module")
def visit(browser) -> Visit:
    return Visit(browser)


def test_what_is_said_and_asked_would_be_seen(visit, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://a.invalid/1"><script>console.error("no");'
                    'fetch("https://b.invalid/2").catch(() => 0); nothing.there</script>')
    visit.open(page).wait_for_timeout(200)
    assert set(visit.asked) == {"http://a.invalid/1", "https://b.invalid/2"}
    assert "no" in visit.said and any("nothing is not defined" in text for text in visit.said)


SERIOUS = """async ([rules, theme]) => {
  document.documentElement.dataset.theme = document.documentElement.dataset.mode = theme;
  const options = {preload: false, resultTypes: ['violations'], ...rules};
  const found = await axe.run({exclude: [['.highlight']]}, options);
  return found.violations.filter(v => ['serious', 'critical'].includes(v.impact))
              .map(v => `${theme}: ${v.id}: ${v.nodes.map(n => n.html.slice(0, 120)).slice(0, 3).join(' | ')}`);
}"""
WIDER = """() => [...document.querySelectorAll('.bd-article *')].filter(e => {
    if (e.getBoundingClientRect().right < 391) return false;
    for (let a = e.parentElement; a; a = a.parentElement)
      if (a !== document.body && getComputedStyle(a).overflowX !== 'visible') return a === document.documentElement;
    return true; }).slice(0, 3).map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("page", contents())
def test_a_page_in_a_browser(html, visit, page):
    tab = visit.open(html / f"{page}.html")
    assert tab.locator(".bd-article h1").count() == 1
    assert tab.locator("mjx-merror").count() == 0
    tab.add_style_tag(content="* { transition: none !important; animation: none !important }")
    wordless = tab.evaluate("""() => [...document.images].map(i => i.alt.trim())
        .filter(alt => !alt || /\\.(svg|png|jpg)$/.test(alt) || /^[\\w.\\/-]*\\//.test(alt))""")
    if not page.startswith("code/") or page == "code/parallel":  # of the code pages, which are alike, one
        tab.evaluate(AXE.read_text())
        bad = tab.evaluate(SERIOUS, [{"runOnly": STANDARDS}, "light"])
        bad += tab.evaluate(SERIOUS, [{"runOnly": {"type": "rule", "values": ["color-contrast"]}}, "dark"])
        assert not bad
    tab.set_viewport_size(PHONE)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390, tab.evaluate(WIDER)
    assert not visit.said
    assert not visit.asked
    assert not wordless


def test_a_diagram_switches_by_keyboard_and_stacks_on_a_phone(html, visit):
    tab = visit.open(html / "diagrams.html")
    shown = "() => [...document.querySelectorAll('#tp-diagram-2 svg')].filter(e => e.getClientRects().length)" \
            ".map(e => [e.parentElement.className, e.classList[0]])"
    assert tab.evaluate(shown) == [["tp-drawn", "tp-wide"]]
    tab.locator("#tp-diagram-2 input").first.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(shown) == [["tp-as_is", "tp-wide"]]
    tab.keyboard.press("ArrowRight")
    tab.set_viewport_size(PHONE)
    assert tab.evaluate(shown) == [["tp-lit", "tp-phone"]]


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_words_of_a_diagram_stay_in_their_box_and_can_be_read(html, visit, size):
    tab = visit.open(html / "diagrams.html")
    tab.set_viewport_size(size)
    out = tab.evaluate("""() => { const bad = [];
      for (const pick of ['drawn', 'as_is', 'lit']) {
        document.querySelectorAll('.tp-pick-' + pick).forEach(e => e.click());
        for (const text of document.querySelectorAll('figure.tp svg text')) {
          if (!text.getClientRects().length) continue;
          const box = text.parentElement.querySelector(':scope > rect'), a = text.getBoundingClientRect();
          const b = (text.parentElement.tagName === 'a' ? box : text.ownerSVGElement).getBoundingClientRect();
          if (text.closest('a') && getComputedStyle(text.closest('a')).textDecorationLine !== 'none')
            bad.push('underlined: ' + text.textContent);
          if (a.right > b.right + 1 || a.left < b.left - 1) bad.push(pick + ': ' + text.textContent);
          const scale = text.ownerSVGElement.getBoundingClientRect().width / text.ownerSVGElement.viewBox.baseVal.width;
          if (parseFloat(getComputedStyle(text).fontSize) * scale < 9) bad.push('small: ' + text.textContent);
        } } return bad; }""")
    assert not out


def test_a_word_of_two_meanings_gets_the_right_one_or_none():
    """SM 9.0 is a compute capability; Linux and Jupyter have kernels too; to rank is a verb; a page is the reader's."""
    spec = importlib.util.spec_from_file_location("first_uses", BOOK / "_ext" / "first_uses.py")
    first_uses = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(first_uses)
    find = first_uses.pattern(("SM", "kernel", "rank", "page"))

    def meant(said):
        return [first_uses.meant((m[1] or m[2].lower()), said, m.start(), m.end()) for m in find.finditer(said)]

    assert meant("on SM 9.0 a kernel has 132 SMs") == ["compute capability", "kernel", "SM"]
    assert meant("the kernel that shapes the cable, or a Jupyter kernel") == [None, None]
    assert meant("words rank them; each rank has its shard") == [None, "rank"]
    assert meant("this page; pages of 16 tokens and a page table") == [None, "page", "page"]
