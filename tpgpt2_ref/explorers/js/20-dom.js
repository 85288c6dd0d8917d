// Elements, controls and the panel that every explorer is: controls, a figure, an answer that is read aloud.
(function (T) {
  const SVG = "http://www.w3.org/2000/svg";
  let ids = 0;

  function filled(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
    return element;
  }

  T.h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
  T.svg = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);
  // A picture of its own: its words are all that a screen reader has of it
  T.drawing = (width, height, label, ...children) =>
    T.svg(
      "svg",
      { class: "tpx-plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label },
      ...children,
    );
  const h = T.h;

  // 1234567 -> "1,234,567"; numbers below 100 keep what matters of them
  T.number = function (x, digits) {
    if (digits === undefined && x !== 0 && Math.abs(x) < 0.1) return String(Number(x.toPrecision(2)));
    if (digits === undefined) digits = Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 10 ? 1 : 2;
    return x.toLocaleString("en-US", { maximumFractionDigits: digits });
  };
  T.percent = (x, digits = 0) => `${(100 * x).toFixed(digits)} %`;
  T.times = (n, what) => `${T.number(n)} ${what}${n === 1 ? "" : "s"}`;
  T.bytes = function (n) {
    if (n < 1024) return `${n} B`;
    const power = Math.min(3, Math.floor(Math.log2(n) / 10)),
      value = n / 1024 ** power;
    return `${T.number(value, value < 10 ? 1 : 0)} ${["", "KiB", "MiB", "GiB"][power]}`;
  };
  T.us = (us) => (us >= 10000 ? `${T.number(us / 1000, 1)} ms` : `${T.number(us, us < 100 ? 1 : 0)} µs`);
  T.rankColour = (r) => `var(--tp-rank-${r % 8})`;

  // One control. spec: {key, kind, label, options: [[value, words]] or state => those, values, format, hidden}
  //   "choice" a list to choose from, "radio" a row of buttons, "slide" a slider over `values`, "checks" any of a few
  function control(spec, state, changed) {
    const id = `tpx-${++ids}`,
      options = () => (typeof spec.options === "function" ? spec.options(state) : spec.options);
    const set = (value) => {
      state[spec.key] = value;
      changed(spec.key);
    };
    const out = { element: null, refresh() {} };
    if (spec.kind === "choice") {
      const list = h("select", { id, onchange: () => set(options()[list.selectedIndex][0]) });
      out.element = h("div", { class: "tpx-control" }, h("label", { for: id }, spec.label), list);
      out.refresh = () => {
        list.replaceChildren(...options().map(([, words]) => h("option", {}, words)));
        list.selectedIndex = Math.max(
          0,
          options().findIndex(([value]) => value === state[spec.key]),
        );
      };
    } else if (spec.kind === "slide") {
      const output = h("output", { for: id });
      const slider = h("input", {
        id,
        type: "range",
        min: 0,
        max: spec.values.length - 1,
        step: 1,
        oninput: () => set(spec.values[Number(slider.value)]),
      });
      out.element = h(
        "div",
        { class: "tpx-control tpx-slide" },
        h("label", { for: id }, spec.label, " ", output),
        slider,
      );
      out.refresh = () => {
        const words = (spec.format || String)(state[spec.key]);
        slider.value = Math.max(0, spec.values.indexOf(state[spec.key]));
        slider.setAttribute("aria-valuetext", words);
        output.textContent = words;
      };
    } else {
      const many = spec.kind === "checks",
        box = h("div", { class: "tpx-buttons" });
      out.element = h("fieldset", { class: "tpx-control" }, h("legend", {}, spec.label), box);
      out.refresh = () => {
        const inputs = options().map(([value, words, off], i) => {
          const on = many ? state[spec.key].includes(value) : state[spec.key] === value;
          const input = h("input", {
            type: many ? "checkbox" : "radio",
            name: id,
            id: `${id}-${i}`,
            disabled: !!off,
            onchange: () =>
              set(
                !many
                  ? value
                  : input.checked
                    ? [...state[spec.key], value]
                    : state[spec.key].filter((v) => v !== value),
              ),
          });
          input.checked = on;
          return h(
            "span",
            { class: "tpx-button" },
            input,
            h("label", { for: `${id}-${i}`, title: off || null }, words),
          );
        });
        const focused = [...box.querySelectorAll("input")].indexOf(document.activeElement);
        box.replaceChildren(...inputs);
        if (focused >= 0 && inputs[focused]) inputs[focused].firstChild.focus();
      };
    }
    return out;
  }

  // spec: {title, controls, draw(state, panel), keys(event, state) -> whether it was used}
  // draw returns {figure: nodes, answer: nodes}; it is called again whenever something changes, the width too
  T.panel = function (root, spec, state) {
    const figure = h("div", { class: "tpx-figure" }),
      answer = h("div", { class: "tpx-answer", "aria-live": "polite" });
    const panel = { state, figure, update, changed, width: () => figure.clientWidth || 640 };
    const controls = spec.controls.map((c) => ({ ...control(c, state, changed), spec: c }));
    const row = h(
      "div",
      { class: "tpx-controls" },
      controls.map((c) => c.element),
    );
    panel.card = h(
      "section",
      { class: "tpx", "aria-label": spec.title },
      h("p", { class: "tpx-title" }, spec.title),
      row,
      spec.answerFirst ? [answer, figure] : [figure, answer],
    );
    root.replaceChildren(panel.card);

    function changed(key) {
      if (spec.changed) spec.changed(state, key);
      update();
    }

    function update() {
      for (const c of controls) {
        c.element.hidden = !!(c.spec.hidden && c.spec.hidden(state));
        c.refresh();
      }
      const inside = figure.contains(document.activeElement) && document.activeElement.dataset.focus;
      const drawn = spec.draw(state, panel);
      figure.replaceChildren(...[drawn.figure].flat(Infinity).filter(Boolean));
      const said = h("div", {}, ...[drawn.answer].flat());
      if (said.innerHTML !== answer.innerHTML) answer.replaceChildren(...said.childNodes);
      if (inside) {
        const again = figure.querySelector(`[data-focus="${inside}"]`);
        if (again) again.focus();
      }
    }

    update();
    let width = panel.width();
    const watch = new ResizeObserver(() => {
      if (panel.width() !== width) {
        width = panel.width();
        update();
      }
    });
    watch.observe(figure);
    panel.close = () => watch.disconnect();
    return panel;
  };

  // Buttons to go through steps one by one: also by the arrow keys while one of them has the focus
  T.stepper = function (panel, key, last, words) {
    const { state } = panel;
    const go = (to) => {
      state[key] = Math.max(0, Math.min(last, to));
      panel.changed(key);
    };
    const button = (name, label, to, off) =>
      h(
        "button",
        { type: "button", "data-focus": name, "aria-disabled": off, onclick: () => (off ? null : go(to)) },
        label,
      );
    const at = state[key];
    const keys = (e) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[e.key];
      if (to === undefined) return;
      e.preventDefault();
      go(to);
    };
    return h(
      "div",
      { class: "tpx-steps", role: "group", "aria-label": words, onkeydown: keys },
      button("start", "Start over", 0, at === 0 && "true"),
      button("back", "◀ Back", at - 1, at === 0 && "true"),
      button("next", "Next ▶", at + 1, at === last && "true"),
      button("end", "To the end", last, at === last && "true"),
    );
  };

  T.table = (head, rows, caption) =>
    h(
      "div",
      { class: "tpx-scroll", tabindex: 0, role: "region", "aria-label": caption },
      h("p", { class: "tpx-caption" }, caption),
      h(
        "table",
        { "aria-label": caption },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            head.map((cell) => h("th", { scope: "col" }, cell)),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map((row) =>
            h(
              "tr",
              {},
              row.map((cell, i) => h(i ? "td" : "th", i ? {} : { scope: "row" }, cell)),
            ),
          ),
        ),
      ),
    );

  // A legend of words with the colour of each
  T.legend = (entries) =>
    h(
      "ul",
      { class: "tpx-legend" },
      entries.map(([colour, words, kind]) =>
        h(
          "li",
          {},
          h("span", { class: `tpx-swatch ${kind || ""}`, style: `--c:${colour}`, "aria-hidden": "true" }),
          words,
        ),
      ),
    );

  // Bring one element to life. live: what a widget adds; see `measure`
  T.mount = function (element, live = null) {
    const make = T.explorers[element.dataset.explorer];
    if (!make || element.dataset.alive) return null;
    element.dataset.alive = "yes";
    return make(element, JSON.parse(element.dataset.initial || "{}"), live);
  };

  T.mountAll = () => document.querySelectorAll("[data-explorer]").forEach((element) => T.mount(element));
})(tpgpt2);
