// A prediction: a number committed before the answer is shown, kept in this browser; and the score of all of them.
(function (T) {
  const KEY = "tpgpt2.predictions",
    { h } = T;
  let memory = {}; // what this visit knows, if the browser keeps nothing

  T.predictions = {
    all() {
      try {
        return JSON.parse(localStorage.getItem(KEY)) || memory;
      } catch {
        return memory;
      }
    },
    put(key, value) {
      const all = { ...T.predictions.all() };
      if (value === null) delete all[key];
      else all[key] = value;
      memory = all;
      try {
        localStorage.setItem(KEY, JSON.stringify(all));
      } catch {
        /* no storage: it lasts for this visit */
      }
      document.dispatchEvent(new CustomEvent("tpgpt2-predictions"));
    },
  };

  // Whether `said` is within `tolerance` of the answer: a share of it, or of 1 where the answer is 0
  T.isRight = (said, answer, tolerance) => Math.abs(said - answer) <= tolerance * (Math.abs(answer) || 1) * (1 + 1e-9);

  T.explorers.prediction = function (root, initial) {
    const { key, question, unit = "", why = "", tolerance = 0.1, ask } = initial,
      name = `tpx-${key}`;
    const answer = ask ? T[ask[0]](ask[1])[ask[2]] : initial.answer; // ["collective", query, "steps"]: computed here
    const say = (n) => `${T.number(n, Math.abs(n) < 10 ? 2 : Math.abs(n) < 100 ? 1 : 0)}${unit ? ` ${unit}` : ""}`;
    const said = h("div", { class: "tpx-answer", "aria-live": "polite" });
    const card = h("section", { class: "tpx tpx-prediction", "aria-label": "Prediction" }),
      input = h("input", {
        id: name,
        type: "text",
        inputmode: "decimal",
        autocomplete: "off",
        size: 8,
        "aria-describedby": `${name}-error`,
      });
    const error = h("p", { id: `${name}-error`, class: "tpx-is-wrong", role: "alert" });
    const radio = (value, words, on) =>
      h(
        "span",
        { class: "tpx-button" },
        h("input", { type: "radio", name: `${name}-sure`, id: `${name}-${value}`, value, checked: on }),
        h("label", { for: `${name}-${value}` }, words),
      );
    const commit = (e) => {
      e.preventDefault();
      const number = Number(input.value.trim().replace(/,(?=\d{3}\b)/g, ""));
      if (!input.value.trim() || !Number.isFinite(number)) {
        error.textContent = "Write a number first: a guess is good enough.";
        input.focus();
        return;
      }
      T.predictions.put(key, {
        said: number,
        sure: form.querySelector(`#${CSS.escape(`${name}-sure`)}`).checked,
        right: T.isRight(number, answer, tolerance),
      });
      show();
      again.focus();
    };
    const form = h(
      "form",
      { onsubmit: commit },
      h("label", { for: name, class: "tpx-question" }, question),
      h(
        "div",
        { class: "tpx-controls" },
        h("span", { class: "tpx-entry" }, input, unit && h("span", {}, unit)),
        h(
          "fieldset",
          { class: "tpx-control" },
          h("legend", {}, "How sure?"),
          h("div", { class: "tpx-buttons" }, radio("sure", "sure", false), radio("guess", "guessing", true)),
        ),
        h("button", { type: "submit" }, "Commit"),
      ),
      error,
    );
    const again = h(
      "button",
      {
        type: "button",
        class: "tpx-quiet",
        onclick: () => {
          T.predictions.put(key, null);
          show();
          input.focus();
        },
      },
      "Take it back",
    );

    function show() {
      const mine = T.predictions.all()[key];
      error.textContent = "";
      if (!mine) {
        card.replaceChildren(form, said);
        said.replaceChildren(h("p", { class: "tpx-caption" }, "The answer shows once you have committed."));
        return;
      }
      const right = T.isRight(mine.said, answer, tolerance),
        off = answer ? (mine.said - answer) / Math.abs(answer) : 0;
      const how = right
        ? "Right"
        : !answer
          ? "No"
          : Math.abs(off) < 9.995
            ? `${T.percent(Math.abs(off))} too ${off > 0 ? "high" : "low"}`
            : `${T.number(mine.said / answer)} times too high`;
      card.replaceChildren(h("p", { class: "tpx-question" }, question), said, again);
      said.replaceChildren(
        h(
          "p",
          {},
          h("strong", { class: right ? "tpx-is-right" : "tpx-is-wrong" }, `${how}. `),
          `It is ${say(answer)}; you said ${say(mine.said)}, ${mine.sure ? "sure" : "guessing"}.`,
        ),
        ...(why ? [h("p", {}, why)] : []),
      );
    }

    root.replaceChildren(card);
    show();
  };

  T.explorers["prediction-score"] = function (root) {
    const card = h("section", { class: "tpx", "aria-label": "Your predictions", "aria-live": "polite" });
    const group = (all, sure) => {
      const mine = all.filter((p) => p.sure === sure),
        right = mine.filter((p) => p.right).length;
      return [
        sure ? "sure" : "guessing",
        String(mine.length),
        String(right),
        mine.length ? T.percent(right / mine.length) : "–",
      ];
    };

    function show() {
      const all = Object.values(T.predictions.all()),
        right = all.filter((p) => p.right).length;
      const [sure, guess] = [true, false].map((s) => all.filter((p) => p.sure === s));
      const rate = (list) => list.filter((p) => p.right).length / list.length;
      const verdict =
        sure.length < 3
          ? "Three predictions that you are sure of make a first score."
          : rate(sure) >= 0.9
            ? "When you are sure, you are right: well calibrated."
            : rate(sure) >= (guess.length ? rate(guess) : 0) + 0.15
              ? "Being sure means something, but less than it feels like."
              : "Being sure tells little yet: look at the ones you were sure of and missed.";
      card.replaceChildren(
        h("p", { class: "tpx-title" }, "Your predictions"),
        h(
          "p",
          {},
          all.length
            ? `${right} of ${all.length} within the tolerance. ${verdict}`
            : "No prediction is committed in this browser yet.",
        ),
        all.length
          ? T.table(
              ["", "predictions", "right", "share"],
              [group(all, true), group(all, false)],
              "By how sure you were",
            )
          : "",
      );
    }

    root.replaceChildren(card);
    document.addEventListener("tpgpt2-predictions", show);
    window.addEventListener("storage", show);
    show();
  };
})(tpgpt2);
