"""Predictions that are kept, and *Measure here*: what a page hears from a kernel, and shows."""
from __future__ import annotations

import pytest

from tpgpt2_ref.explorers import script, static, widget

from .conftest import ASKED, of
from .test_explorers import SHIPPED


def test_a_predictions_reason_shows_with_its_answer(opened):
    page = opened()
    assert "<p>A &lt; B.</p>" in static.html("prediction", {**ASKED, "why": "A < B."})
    page.evaluate("""(asked) => { const e = document.querySelector('[data-explorer="prediction"]');
        e.dataset.initial = JSON.stringify(asked); delete e.dataset.alive; tpgpt2.mount(e); }""",
                  {**ASKED, "why": "A < B."})
    assert "A < B." not in of(page, "prediction").inner_text()
    of(page, "prediction").get_by_label("How many?").fill("14")
    page.keyboard.press("Enter")
    assert "A < B." in of(page, "prediction").inner_text()


def test_a_prediction_is_committed_before_the_answer_shows(page):
    element, score = of(page, "prediction"), of(page, "prediction-score")
    assert "14" not in element.inner_text() and "No prediction" in score.inner_text()
    element.get_by_role("button", name="Commit").click()
    assert "Write a number first" in element.inner_text()
    element.get_by_label("How many?").fill("28")
    element.get_by_text("sure", exact=True).click()
    page.keyboard.press("Tab")
    element.get_by_role("button", name="Commit").press("Enter")
    assert "100 % too high. It is 14 steps; you said 28 steps, sure." in element.inner_text()
    assert "0 of 1 within the tolerance" in score.inner_text()
    page.reload()
    assert "It is 14 steps" in of(page, "prediction").inner_text()  # kept in the browser
    of(page, "prediction").get_by_role("button", name="Take it back").click()
    of(page, "prediction").get_by_label("How many?").fill("15")
    page.keyboard.press("Enter")
    assert "Right. It is 14 steps; you said 15 steps, guessing." in of(page, "prediction").inner_text()


def test_predictions_work_for_the_visit_without_storage(opened):
    page = opened()
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('off'); } });")
    page.reload()
    of(page, "prediction").get_by_label("How many?").fill("14")
    page.keyboard.press("Enter")
    assert "Right." in of(page, "prediction").inner_text()
    assert "1 of 1" in of(page, "prediction-score").inner_text()


LIVE = """
globalThis.asked = []; globalThis.hear = null;
const model = { send: (m) => asked.push(m), on: (_, f) => { globalThis.hear = f; }, off() {} };
globalThis.alive = (name) => {
  const element = document.createElement('div');
  element.dataset.explorer = name;
  document.body.prepend(element);
  globalThis.made = tpgpt2.live(model);
  tpgpt2.mount(element, made);
};
"""
FOUND = {
    "collective": {"dots": [{"path": "gloo", "world": 4, "bytes": 1536, "us_median": 300.0, "here": True}]},
    "roofline": {"dots": [{"backend": "NAIVE", "phase": "decode", "batch": 1, "seq_len": 128, "heads": 12,
                           "head_size": 64, "dtype": "float16", "us_median": 99.0, "us_p10": 98.0, "us_p90": 100.0,
                           "here": True}]},
    "cost": {"dots": [{"gpt2": "gpt2", "tp": 2, "batch": 1, "tokens": 1, "context": 192, "us": 160.0, "sum": "push",
                       "here": True}]},
}


def test_a_widget_loads_its_script_over_the_channel(browser):
    """JupyterLab's side: the module that a widget brings, its kernel played by a page."""
    page, wrong = browser.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.expose_function("kernel", lambda message: {"script": script.data_script() + script.script(),
                                                    "style": script.style()} if message["ask"] == "script" else None)
    shown = page.evaluate("""async (loader) => {
      const module = await import(URL.createObjectURL(new Blob([loader], { type: 'text/javascript' })));
      const render = async (name) => {
        const hear = [], values = { name, initial: { tp: 4 }, measures: name === 'cost' };
        const model = { get: (key) => values[key], on: (_, f) => hear.push(f), off() {},
          send: (m) => kernel(m).then((found) => found && hear.forEach((f) => f(found))) };
        const el = document.body.appendChild(document.createElement('div'));
        const close = await module.default.render({ model, el });
        return [el.innerText, close];
      };
      const made = await Promise.all([render('heads'), render('cost')]);
      made.forEach(([, close]) => close());
      return made.map(([words]) => words);
    }""", widget.LOADER)
    page.close()
    assert "Each of 4 ranks" in shown[0] and "Measure here" in shown[1] and not wrong


@pytest.mark.parametrize("name", ["collective", "timeline", "roofline", "cost"])
def test_measure_here_asks_shows_progress_and_drops_a_dot(page, name):
    page.evaluate(LIVE + f"alive({name!r})")
    element = of(page, name).first
    button = element.get_by_role("button", name="Measure here")
    before = element.locator(".tpx-here").count()
    button.press("Enter")
    assert page.evaluate("asked[0].ask") == "measure" and page.evaluate("Object.keys(asked[0].point).length") >= 3
    page.evaluate("hear({ progress: '1 row measured' })")
    assert "1 row measured" in element.inner_text() and element.get_by_role("button", name="Stop").count() == 1
    found = FOUND.get(name) or {"timeline": page.evaluate(f"({{ ...{SHIPPED}, here: true, label: 'here, x' }})")}
    page.evaluate("found => hear({ done: found })", found)
    if name == "timeline":
        assert "Measured: here, x" in element.inner_text()
    else:
        assert element.locator(".tpx-here").count() > before
    element.get_by_role("button", name="Measure here").click()
    page.evaluate("hear({ failed: 'needs 2 GPUs, this machine has 0' })")
    assert "needs 2 GPUs" in element.locator(".tpx-live").inner_text()
    page.evaluate("made.close()")
    assert page.evaluate("asked.at(-1).ask") == "stop"
