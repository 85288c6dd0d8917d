"""The explorers in a browser: every control by mouse and by keyboard, and what is shown. One Chromium, no network."""
from __future__ import annotations

import re

import pytest

from tpgpt2_ref.explorers import NAMES, script

from .conftest import answer, choose, fresh, of, slide

SHIPPED = "tpgpt2.data.timelines.find((t) => t.plan === 'shipped' && t.graph && t.tp === 2)"


def test_they_come_alive_and_say_what_they_are(page):
    for name in NAMES:
        assert of(page, name).get_attribute("data-alive") == "yes"
        assert of(page, name).locator(".tpx-static").count() == 0
        assert of(page, name).locator("[aria-live]").count() >= 1
    unnamed = page.evaluate("""[...document.querySelectorAll('input, select, button')].filter((e) =>
        !e.textContent.trim() && !(e.labels && e.labels.length && e.labels[0].textContent.trim()))
        .map((e) => e.outerHTML)""")
    drawn = page.evaluate("[...document.querySelectorAll('.tpx svg')].map((e) => e.getAttribute('aria-label') || '')")
    assert not unnamed and len(drawn) >= 5 and min(map(len, drawn)) > 20
    milliseconds = []
    for _ in range(3):
        begun = page.evaluate("performance.now()")
        fresh(page, *NAMES)
        milliseconds.append(page.evaluate("performance.now()") - begun)
    assert min(milliseconds) < 1000
    assert len(script.script()) + len(script.data_script()) < 1_000_000


def test_without_javascript_a_figure_stands_there(opened):
    page = opened(java_script_enabled=False)
    for name in NAMES:
        assert of(page, name).locator(".tpx-static").is_visible()
    assert of(page, "heads").locator("rect").count() == 36
    assert "T4" in of(page, "selector").inner_text() and "14 steps" in of(page, "collective").inner_text()
    assert re.search(r"gpt2-xl\s+[\d.]+", of(page, "cost").inner_text())


@pytest.mark.parametrize("name", ["heads", "selector", "collective", "timeline", "roofline", "cost"])
@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_every_control_turns_something(page, name, how):
    element, seen = of(page, name), 0

    def state() -> str:
        return element.locator(".tpx-figure").inner_html() + element.locator(".tpx-answer").inner_html()

    for index in range(element.locator(".tpx-controls .tpx-control").count()):
        fresh(page, name)  # each from the start: what one turns another may have made idle
        control = element.locator(".tpx-controls .tpx-control").nth(index)
        if not control.is_visible():
            continue
        before, slider, box = state(), control.locator("input[type=range]"), control.locator("select")
        if slider.count():
            if how == "keyboard":
                slider.press("End" if slider.input_value() == slider.get_attribute("min") else "ArrowLeft")
            else:
                at, size = slider.input_value() == slider.get_attribute("max"), slider.bounding_box()
                slider.click(position={"x": 4 if at else size["width"] - 4, "y": size["height"] / 2})
        elif box.count():
            if how == "keyboard":
                last = box.locator("option").count() - 1
                box.press("ArrowUp" if box.evaluate("e => e.selectedIndex") == last else "ArrowDown")
            else:  # a list's own window is the system's: choosing from it is what can be driven
                box.select_option(index=box.locator("option").count() - 1)
                if state() == before:
                    box.select_option(index=0)
        else:
            inputs = control.locator("input:enabled")
            if inputs.first.get_attribute("type") == "checkbox":
                inputs.first.press(" ") if how == "keyboard" else control.locator("label").first.click()
            elif how == "keyboard":
                control.locator("input:checked").press("ArrowRight")
            else:
                control.locator("input:enabled:not(:checked) + label").last.click()
        assert state() != before, control.inner_text()
        assert how == "mouse" or page.evaluate("document.activeElement.tagName") in ("INPUT", "SELECT")  # focus stays
        seen += 1
    for button in ("Next ▶", "◀ Back", "To the end", "Start over"):
        found = element.get_by_role("button", name=button)
        if found.count():
            if button == "Next ▶":
                element.get_by_role("button", name="Start over").press("Enter")
            before = state()
            found.press("Enter") if how == "keyboard" else found.click()
            assert state() != before, button
    assert seen >= 3


def test_heads_whose_q_k_and_v_are_parted_turn_red(page):
    assert "No head is parted" in answer(page, "heads") and "D/4 = 192" in answer(page, "heads")
    assert of(page, "heads").locator("rect.tpx-bad").count() == 0
    assert "12 of 12 heads are parted" in choose(page, "heads", Cut="naive half")
    assert of(page, "heads").locator("rect.tpx-bad").count() == 36
    assert "all of Q and 384 columns of K" in answer(page, "heads")
    said = choose(page, "heads", Cut="by head", Model="gpt2-xl, 25 heads")
    assert "1 head of zeros is added: 26 in all" in said and of(page, "heads").locator("rect.tpx-empty").count() == 3


def test_what_a_t4_with_bfloat16_gets_and_why(page):
    said = choose(page, "selector", GPU="T4 (SM 75)", dtype="bfloat16")
    ours = page.evaluate("tpgpt2.select({platform: 'cuda', capability: '7.5', dtype: 'bfloat16'}).backend")
    assert f"This book: {ours}" in said
    theirs = page.evaluate("tpgpt2.select_as('0.11.0', {capability: 75, dtype: 'bfloat16'})")
    assert theirs["backend"] is None and f"vLLM 0.11.0: refuses — {theirs['error']}" in said
    boxes = of(page, "selector").locator(".tpx-box.refused").all_inner_texts()
    assert any("FLASH_ATTN_2" in box and "compute capability 7.5: needs SM 8.0" in box for box in boxes)
    assert of(page, "selector").locator(".tpx-box.chosen .tpx-name").first.inner_text() == ours


def test_how_many_steps_a_ring_of_8_takes(page):
    choose(page, "collective", Ranks=6)
    of(page, "collective").get_by_role("button", name="To the end").click()
    said = answer(page, "collective")
    assert "ring over 8 ranks takes 14 steps, and 1.75 times the tensor leaves each rank: as the formula says" in said
    assert of(page, "collective").locator("rect.tpx-done").count() == 64
    assert "Not measured with 8 ranks" in of(page, "collective").inner_text()


def test_the_collective_plays_by_itself_and_by_arrow_keys(page):
    element = of(page, "collective")
    element.get_by_role("button", name="Next ▶").press("ArrowRight")
    assert answer(page, "collective").startswith("1 of 6")
    page.keyboard.press("End")
    assert answer(page, "collective").startswith("6 of 6")
    element.get_by_role("button", name="Play").click()
    element.locator(".tpx-answer", has_text="1 of 6").wait_for(timeout=5000)
    element.get_by_role("button", name="Pause").click()
    assert element.get_by_role("button", name="Play").count() == 1


def test_what_a_rank_50_us_late_costs(page):
    element = of(page, "timeline")
    slider = element.get_by_label("Rank 1 is late by")
    slide(slider, 6)
    assert slider.get_attribute("aria-valuetext") == "50 µs"
    said = answer(page, "timeline")
    made = page.evaluate(f"[0, 50].map((late) => tpgpt2.lateTimeline({SHIPPED}, late))")
    more = made[1]["end"] - made[0]["end"]
    assert 45 < more <= 50.001 and f"every rank ends {more:.1f}".removesuffix(".0") in said
    assert re.search(r"rank 0 waits (49|5\d)(\.\d)? µs at the first collective \(all_reduce\)", said)
    assert element.locator("rect.tpx-waiting").count() >= 1
    assert "all_gather" in choose(page, "timeline", Plan="as drawn")


def test_why_xl_pays_at_two_gpus_and_small_does_not(page):
    small = answer(page, "cost")
    assert re.search(r"Recorded: 2 GPUs are 0\.\d+ times as fast as one: they don't pay", small)
    xl = choose(page, "cost", Model="gpt2-xl")
    assert re.search(r"Recorded: 2 GPUs are 1\.\d+ times as fast as one\.", xl)
    saved, lost = ({}, {})
    for name, said in (("small", small), ("xl", xl)):
        saved[name], lost[name] = (float(x.replace(",", "")) for x in re.search(
            r"Splitting takes ([\d.,]+) µs off the work of a rank; .* put ([\d.,]+) µs back", said).groups())
    assert saved["small"] < lost["small"] and saved["xl"] > lost["xl"]  # the reason, in the explorer's own words
    assert of(page, "cost").locator("circle.tpx-recorded").count() >= 4


def test_the_cost_dials_model_contradicts_no_recorded_run_silently(page):
    """Where the model's least batch that pays has a slower recorded one above it, the answer says so."""
    for model in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        said = choose(page, "cost", Model=model)
        slow = [int(x) for x in of(page, "cost").locator("circle.tpx-recorded title").evaluate_all(
            r"""found => found.map((e) => e.textContent.match(/batch (\d+): ([\d.]+) times/))
                .filter((m) => m && m[2] < 1).map((m) => m[1])""")]
        if least := re.search(r"The least batch at which .* is ([\d,]+)\.", said):
            assert not [batch for batch in slow if batch >= int(least[1].replace(",", ""))]
        elif after := re.search(r"faster from batch (\d+) on; recorded at (.*) they are not", said):
            told = [int(b) for b in re.findall(r"batch (\d+)", after[2])]
            assert told == [batch for batch in slow if batch >= int(after[1])]
        else:
            assert "at no batch up to 4,096" in said
    one = choose(page, "cost", GPUs="1")
    assert re.match(r"Recorded: a step took [\d,]+ µs on 1 GPU\.\s+The model says [\d,]+ µs, \d+ % off\.", one)
    assert re.search(r"± \d+ % in the median, \d+ % at worst", of(page, "cost").inner_text())


def test_names_beside_the_recorded_lines_stand_apart(page):
    for world in (0, 2):
        choose(page, "collective", Ranks=world)
        boxes = of(page, "collective").locator("svg").last.locator("text").evaluate_all(
            """all => all.filter((e) => ['NCCL', 'one-shot', 'two-shot', 'push'].includes(e.textContent))
                .map((e) => e.getBoundingClientRect()).map((b) => [b.left, b.right, b.top + 2, b.bottom - 2])""")
        assert len(boxes) >= 3
        assert not [1 for i, a in enumerate(boxes) for b in boxes[:i]
                    if a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]]


def test_the_cost_dial_says_where_nobody_measured(page):
    assert of(page, "cost").locator("rect.tpx-greyed").count() == 0
    assert "Outside what was fitted: batch 512" in choose(page, "cost", Batch=9)
    assert of(page, "cost").locator("rect.tpx-greyed").count() > 0
    assert "on paper" in choose(page, "cost", GPUs="8")
    said = choose(page, "cost", GPUs="4", Link="sockets")
    assert "Not measured: the model has no all_reduce over nccl/sockets" in said
    choose(page, "cost", GPUs="2", Batch=0, Link="the GPUs' own (NVLink)")
    assert "no decode that sums by nccl was fitted" in choose(page, "cost", **{"All-reduce": "nccl"})


def test_the_roofline_steps_through_its_rows(page):
    element = of(page, "roofline")
    first = answer(page, "roofline")
    element.locator("svg").press("ArrowRight")
    assert answer(page, "roofline") != first and "Row 2 of" in answer(page, "roofline")
    page.keyboard.press("End")
    last = answer(page, "roofline")
    element.locator(".tpx-letter").first.click()
    assert answer(page, "roofline") != last
    machines = page.evaluate("tpgpt2.data.machines")
    total = sum(len(m["attention"]["rows"]) for m in machines.values())
    choose(page, "roofline", Head_size="all", dtype="all")
    assert f"of {total}." in answer(page, "roofline")  # every recorded row can be reached


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_all_of_it(opened, theme):
    page = opened(theme=theme, width=390)
    choose(page, "heads", Cut="naive half")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate("""[...document.querySelectorAll('.tpx-figure > svg')].filter((e) =>
        e.getBoundingClientRect().right > 390).map((e) => e.outerHTML.slice(0, 80))""")
    small = page.evaluate("""[...document.querySelectorAll('.tpx *')].filter((e) => e.textContent.trim()
        && !e.children.length && parseFloat(getComputedStyle(e).fontSize) < 9).map((e) => e.outerHTML)""")
    assert not wide and not small
    faint = page.evaluate("""(() => {
      const part = (c) => (c / 255 <= .03928 ? c / 255 / 12.92 : ((c / 255 + .055) / 1.055) ** 2.4);
      const light = (words) => { const [r, g, b] = words.match(/[\\d.]+/g).map(Number);
        return .2126 * part(r) + .7152 * part(g) + .0722 * part(b); };
      const ground = light(getComputedStyle(document.documentElement).backgroundColor);
      const words = '.tpx p, .tpx td, .tpx th, .tpx strong, .tpx-caption, .tpx svg text.tpx-small';
      return [...document.querySelectorAll(words)].filter((e) => {
        const style = getComputedStyle(e), own = light(e.closest('svg') ? style.fill : style.color);
        return (Math.max(own, ground) + .05) / (Math.min(own, ground) + .05) < 4.5;
      }).map((e) => e.outerHTML);
    })()""")
    assert not faint
