"""A Chromium, a page in it with every explorer, and what a reader does there."""
from __future__ import annotations

import re
import shutil

import pytest

from tpgpt2_ref.explorers import NAMES, script, static
from tpgpt2_ref.tests.workers import pytest_xdist_auto_num_workers, pytest_xdist_make_scheduler  # noqa: F401

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ASKED = {"key": "one", "question": "How many?", "unit": "steps", "answer": 14, "tolerance": 0.1}
TEMPLATE = """<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8"><style>{style}
html {{ background: #fff }} html[data-theme=dark] {{ background: #14181e }} body {{ margin: 8px }}
</style><body>{body}<script src="tpgpt2-data.js"></script><script src="tpgpt2.js"></script>"""


@pytest.fixture(scope="module")  # no longer: while playwright runs, its event loop is in the way of others'
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page with every explorer, light and dark, as a reader's disk has it."""
    made = tmp_path_factory.mktemp("explorers")
    (made / "tpgpt2-data.js").write_text(script.data_script())
    (made / "tpgpt2.js").write_text(script.script())
    body = "".join(static.html(name, ASKED if name == "prediction" else {}) for name in NAMES)
    for theme in ("light", "dark"):
        (made / f"{theme}.html").write_text(TEMPLATE.format(theme=theme, style=script.style(), body=body))
    return made


def new_page(browser, folder, wrong: list, theme="light", width=1000, **options):
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith("file:") else wrong.append(r.url))
    page.goto((folder / f"{theme}.html").as_uri())
    return page


@pytest.fixture(scope="module")
def shared(browser, folder):
    """(a page that most tests share, what went wrong on it)"""
    wrong: list[str] = []
    return new_page(browser, folder, wrong), wrong


@pytest.fixture
def page(shared):
    """A page with every explorer as at first. At the end: no script failed and nobody outside was asked."""
    page, wrong = shared
    page.evaluate("""localStorage.clear();
        document.querySelectorAll('[data-explorer]:not([data-initial])').forEach((e) => e.remove());""")
    fresh(page, *NAMES)
    yield page
    assert not wrong


@pytest.fixture
def opened(browser, folder):
    """opened(theme, width, ...) -> a page of its own, under the same rule."""
    pages, wrong = [], []

    def open_page(**how):
        pages.append(new_page(browser, folder, wrong, **how))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
    assert not wrong


def fresh(page, *names: str) -> None:
    """Bring explorers to life anew."""
    page.evaluate("""(names) => names.forEach((name) => {
        const element = document.querySelector(`[data-explorer="${name}"]`);
        delete element.dataset.alive;
        tpgpt2.mount(element);
    })""", list(names))


def of(page, name: str):
    return page.locator(f'[data-explorer="{name}"]')


def answer(page, name: str) -> str:
    return of(page, name).locator(".tpx-answer").inner_text()


def choose(page, name: str, **controls) -> str:
    """Set controls by their labels, words joined by _; -> the answer."""
    for label, value in controls.items():
        words = re.compile(label.replace("_", " "), re.I)
        if isinstance(value, int):
            slide(of(page, name).get_by_role("slider", name=words), value)
        else:
            box = of(page, name).get_by_role("combobox", name=words)
            if box.count():
                box.select_option(label=value)
            else:
                of(page, name).get_by_role("group", name=words).get_by_text(value, exact=True).click()
    return answer(page, name)


def slide(slider, index: int):
    """To a place of a slider, by the keyboard."""
    slider.press("Home")
    for _ in range(index):
        slider.press("ArrowRight")
