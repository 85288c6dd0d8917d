"""Pictures: every box leads to a file, every claim carries its verdict, nothing leaves its frame; plots in words."""
from __future__ import annotations

import re
from functools import cache
from xml.etree import ElementTree

import pytest

from tpgpt2_ref import pictures
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.notebook import palette
from tpgpt2_ref.pictures import DRAWINGS, STATES, flow, messages, svg, teaching
from tpgpt2_ref.pictures.diagrams import PACKAGE
from tpgpt2_ref.pictures.lit import lit as read
from tpgpt2_ref.pictures.shapes import Line

SVG = "{http://www.w3.org/2000/svg}"
lit = cache(read)


def drawn(number: str, state: str, wide: bool = True, verdicts=None) -> str:
    high, inside = flow.laid_out(DRAWINGS[number], state, wide, verdicts or pictures.verdicts(), lit(number))
    return svg.svg(svg.WIDE if wide else svg.NARROW, high, inside, "title", "desc", "key")


def lines(thing):
    """Every line of a drawing, and the claims of its boxes' titles as lines."""
    if isinstance(thing, Line):
        yield thing
    elif hasattr(thing, "claims"):
        yield Line(thing.title, thing.claims, thing.now, thing.added)
    for name in ("rows", "boxes", "lines", "inner", "columns"):
        for child in getattr(thing, name, ()):
            for part in (child[1] if isinstance(child, tuple) else (child,)):
                yield from lines(part)
    if getattr(thing, "note", None):
        yield from lines(thing.note)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("number", DRAWINGS)
def test_a_diagram_is_whole_in_every_state_and_width(number, state, wide):
    root = ElementTree.fromstring(drawn(number, state, wide))
    w, h = (float(x) for x in root.get("viewBox").split()[2:])
    assert root.find(f"{SVG}title").text and root.find(f"{SVG}desc").text
    for box in root.iter(f"{SVG}rect"):
        x, y, bw, bh = (float(box.get(k)) for k in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + bw <= w and y + bh <= h
    for text in root.iter(f"{SVG}text"):
        size = float(text.get("font-size", svg.SANS))
        long = svg.width(text.text, size, "mono" in text.get("class", ""), "bold" in text.get("class", ""))
        left = float(text.get("x")) - {"middle": long / 2, "end": long}.get(text.get("text-anchor"), 0)
        assert -1 <= left and left + long <= w + 1 and float(text.get("y")) <= h, text.text
        assert size >= 10  # at least 9 pixels on a page of 390


@pytest.mark.parametrize("number", DRAWINGS)
def test_a_box_leads_to_its_file(number):
    targets = re.findall(r'href="\.\./tpgpt2_ref/([^"]*)"', drawn(number, "drawn"))
    assert targets and all((PACKAGE / target).is_file() for target in targets)
    assert " href=" not in drawn(number, "as_is")  # JupyterLab can't show an output that has an SVG link with that


def test_every_claim_about_the_diagrams_is_marked_somewhere():
    marked = {claim for drawing in DRAWINGS.values() for line in lines(drawing) for claim in line.claims}
    assert marked == set(range(1, 61))  # 61 is the background that no box draws


def test_what_is_not_right_says_what_is_so():
    said = {claim for drawing in DRAWINGS.values() for line in lines(drawing) if line.now or line.added
            for claim in line.claims}
    assert {claim for claim, verdict in pictures.verdicts().items() if verdict != "right"} <= said


def test_a_mark_says_the_ledgers_verdict():
    found = pictures.verdicts()
    assert found[27] == "wrong"
    page = drawn("2", "as_is")
    assert 'aria-label="claim 27: wrong"' in page and 'href="ledger.md#claim-27"' in page
    assert re.search(r"line-through[^>]*>q_0: \(\.\.\., D/4\)<", page) and "→ (..., D/2)" in page
    other = drawn("2", "as_is", verdicts={**found, 27: "right"})
    assert 'aria-label="claim 27: right"' in other and "→ (..., D/2)" not in other
    assert not re.search(r"line-through[^>]*>q_0", other)


def test_what_was_left_out_stands_only_as_it_is():
    assert "GELU" not in drawn("2", "drawn") and "GELU" in drawn("2", "as_is")


def test_the_measured_state_shows_recorded_rows_and_names_the_machine():
    shown = lit("3")
    from tpgpt2_ref.recorded import results

    [run] = [r for r in results.recorded("collectives") if r.machine["slug"] == "2x-nvidia-h200"]
    times = {row["us_median"] for row in run.rows if row["op"] == "all_reduce"}
    bars = shown.bars["Both workers have summed data"]
    assert bars and {bar.value for bar in bars} <= times and run.label in shown.of
    html = pictures.diagram(3).html
    assert shown.of in html and f"{bars[0].value:,.1f} µs" in html


def test_bars_of_every_diagram_stand_in_a_box_of_it():
    for number, drawing in DRAWINGS.items():
        titles = {line.text.strip("`") for line in lines(drawing)}
        assert any(bars for title, bars in lit(number).bars.items() if title in titles), number


def test_a_diagram_can_be_switched_by_keyboard_and_says_what_it_is():
    html = pictures.diagram("cost").html
    assert html.count('type="radio"') == 3 and html.count(" checked") == 1 and "<legend>The cost table</legend>" in html
    assert len(ids := re.findall(r'\bid="([^"]*)"', html)) == len(set(ids))
    assert pictures.diagram(2)._repr_mimebundle_()["text/plain"].startswith("Diagram 2. ")
    with pytest.raises(UserError, match="1, 2, 3, 4, 5, 6, cost"):
        pictures.diagram(7)


@pytest.mark.parametrize("name", teaching.PICTURES)
def test_a_picture_is_whole(name):
    html = pictures.picture(name).html
    for each in re.findall(r"<svg.*?</svg>", html, re.S):
        root = ElementTree.fromstring(each)
        assert root.find(f"{SVG}title").text and root.find(f"{SVG}desc").text
        w = float(root.get("viewBox").split()[2])
        assert all(0 <= float(r.get("x")) and float(r.get("x")) + float(r.get("width")) <= w
                   for r in root.iter(f"{SVG}rect"))


def test_no_such_picture():
    with pytest.raises(UserError, match="head-stripes"):
        pictures.picture("tails")


@pytest.mark.parametrize("n", range(2, 9))
def test_a_ring_sums_all_in_2n_less_2_steps(n):
    *steps, (_, have, _) = messages.ring_steps(n)
    assert len(steps) == 2 * n - 2 and have == [[n] * n] * n
    assert all(sorted(rank for rank, _ in sent) == list(range(n)) for _, _, sent in steps)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(k * c for k, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [0, 1])
def test_words_can_be_read_and_no_two_meanings_share_a_colour(dark):
    colours = {name: value[dark] for name, value in palette.COLOURS.items()}
    for name in ("ink", "quiet", "right", "wrong", "outdated", "vague", "moving"):
        assert contrast(colours[name], colours["ground"]) >= 4.5, name
    for name in (f"rank-{i}" for i in range(8)):
        assert contrast(colours[name], colours["ground"]) >= 2.5, name
    assert len(set(colours.values())) == len(colours)


def test_a_plot_has_words_two_sizes_and_the_pages_colours():
    from matplotlib.figure import Figure

    from tpgpt2_ref.notebook.style import figure_html

    figure = Figure(figsize=(7, 3))
    left, right = figure.subplots(ncols=2)
    left.plot([1, 2], [3, 4], color=palette.RANK_COLOURS[1], label="push")
    left.set(title="Push is flat", xlabel="bytes", ylabel="µs")
    html = figure_html(figure)
    assert 'aria-label="Push is flat. Across: bytes. Up: µs. Shown: push"' in html
    assert "var(--tp-rank-1)" in html and palette.RANK_COLOURS[1] not in html.split("</style>", 1)[1]
    wide, narrow = re.findall(r'<svg class="tp-(?:wide|phone)" viewBox="0 0 ([\d.]+) ([\d.]+)"', html)
    assert float(wide[0]) > 500 > 340 > float(narrow[0]) and float(narrow[1]) > float(wide[1])  # one below the other
    assert tuple(figure.get_size_inches()) == (7, 3) and left.get_subplotspec().get_gridspec().ncols == 2
    assert 'aria-label="Said"' in figure_html(figure, "Said")
    other = figure_html(figure, "Another")
    assert not set(re.findall(r'\bid="([^"]*)"', html)) & set(re.findall(r'\bid="([^"]*)"', other))
