// Cost dial: what a step is made of, whether a second GPU pays, and where the model knows nothing.
tpgpt2.explorers.cost = function (root, initial, live) {
  const T = tpgpt2,
    { h, svg } = T;
  const BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
    PARTS = ["weights", "cache", "kernels", "collectives"];
  const COLOURS = {
    weights: "var(--tpx-weights)",
    cache: "var(--tpx-cache)",
    kernels: "var(--tp-computing)",
    collectives: "var(--tp-moving)",
  };
  const NAMES = {
    weights: "weights, fitted",
    cache: "cache, fitted",
    kernels: "a layer's fixed part and arithmetic, fitted",
    collectives: "collectives",
  };
  const LINKS = { "": "the GPUs' own (NVLink)", "host-memory": "host memory", sockets: "sockets" };
  const { queryOf, matching, ask, sameAsked } = T.dial;

  // What a run may take whose prediction is off by the worst error: errors are shares of what was recorded
  const between = ({ answer, band }) => [answer.us / (1 + band), answer.us / (1 - Math.min(band, 0.95))];

  function bars(one, many, state, width) {
    const left = 66,
      right = 12,
      row = 34,
      gap = 34,
      top = 10;
    const dots = [one, many].map((f) =>
      (f.answer.us === null ? [] : matching(f.q, f.answer.rung, state).filter((r) => r.batch === f.q.batch)).concat(
        (state.dots || []).filter((d) => d.tp === f.q.tp && sameAsked(d, f.q)),
      ),
    );
    const most = Math.max(
      1,
      ...[one, many].map((f) => (f.parts ? between(f)[1] : f.answer.us || 0)),
      ...dots.flat().map((r) => r.us),
    );
    const x = (us) => left + (us / (most * 1.05)) * (width - left - right),
      shapes = [];
    [one, many].forEach((f, i) => {
      const y = top + i * (row + gap);
      shapes.push(
        svg("text", { x: 2, y: y + row / 2 + 4, class: "tpx-strong" }, f.q.tp === 1 ? "1 GPU" : `${f.q.tp} GPUs`),
      );
      if (f.answer.us === null || !f.parts) {
        shapes.push(svg("text", { x: left, y: y + row / 2 + 4 }, "not measured"));
        return;
      }
      let at = 0;
      for (const part of PARTS) {
        const us = f.parts[part];
        if (us <= 0) continue;
        shapes.push(
          svg(
            "rect",
            {
              x: x(at),
              y,
              width: Math.max(0.5, x(at + us) - x(at) - 1),
              height: row,
              fill: COLOURS[part],
              class: f.outside.length ? "tpx-greyed" : "",
            },
            svg("title", {}, `${NAMES[part]}: ${T.us(us)}`),
          ),
        );
        if (x(at + us) - x(at) > 40) {
          shapes.push(
            svg(
              "text",
              { x: (x(at) + x(at + us)) / 2, y: y + row / 2 + 4, "text-anchor": "middle", class: "tpx-on" },
              T.number(us, 0),
            ),
          );
        }
        at += us;
      }
      const [low, high] = between(f).map(x),
        middle = y + row + 6,
        said = `${T.us(at)} predicted ± ${T.percent(f.typical, 0)} in the median, ${T.percent(f.band, 0)} at worst`;
      shapes.push(
        svg("path", {
          d: `M${low},${middle - 3}v6M${low},${middle}H${high}M${high},${middle - 3}v6`,
          class: "tpx-band",
        }),
        svg(
          "text",
          {
            x: Math.max(Math.min(x(at), width - 4), 5.8 * said.length),
            y: y + row + 20,
            "text-anchor": "end",
            class: "tpx-small",
          },
          said,
        ),
      );
      dots[i].forEach((r) =>
        shapes.push(
          svg(
            "circle",
            { cx: x(r.us), cy: middle, r: 4.5, class: r.here ? "tpx-here" : "tpx-recorded" },
            svg("title", {}, `${r.here ? "here" : "recorded"}, ${r.sum}: ${T.us(r.us)}`),
          ),
        ),
      );
    });
    const height = top + 2 * (row + gap);
    return T.drawing(
      width,
      height,
      "What a step is made of, one GPU above, several below",
      shapes,
    );
  }

  // [{batch, times, sum}]: how many times as fast the recorded runs were on several GPUs as on one
  function recordedTimes(one, many, state) {
    if (state.link) return [];
    const by = (f) => matching(f.q, f.answer.rung, state),
      alone = by(one);
    return by(many).flatMap((b) => {
      const a = alone.find((r) => r.batch === b.batch);
      return a ? [{ batch: b.batch, times: a.us / b.us, sum: b.sum }] : [];
    });
  }

  // From which batch on more GPUs pay, by the model; and the recorded batches from there on at which they did not
  function crossing(one, many, state) {
    const { tp } = state,
      batch = many.answer.crossover_batch;
    if (one.q.machine !== many.q.machine) return "";
    const recorded = recordedTimes(one, many, state);
    if (!batch) {
      const faster = recorded.filter((r) => r.times > 1);
      return (
        `The model predicts ${tp} GPUs faster at no batch up to 4,096` +
        (faster.length ? `; recorded at ${inWords(faster)} they are.` : ".")
      );
    }
    const slower = recorded.filter((r) => r.batch >= batch && r.times <= 1);
    if (!slower.length) return `The least batch at which ${tp} GPUs are predicted faster is ${T.number(batch)}.`;
    return (
      `The model predicts ${tp} GPUs faster from batch ${T.number(batch)} on; recorded at ${inWords(slower)} ` +
      "they are not."
    );
  }

  const inWords = (points) => points.map((r) => `batch ${r.batch} (${T.number(r.times)} times)`).join(", ");

  function speedups(state, width) {
    const found = BATCHES.map((batch) => [1, state.tp].map((tp) => ask(queryOf(state, tp, batch)))).filter(
      ([a, b]) => a.answer.us !== null && b.answer.us !== null,
    );
    if (!found.length) return null;
    const points = found.map(([a, b]) => ({
      batch: a.q.batch,
      times: a.answer.us / b.answer.us,
      outside: a.outside.length > 0 || b.outside.length > 0,
      error: a.band + b.band,
    }));
    const recorded = recordedTimes(...found[0], state);
    const most = Math.max(
      state.tp * 0.75,
      1.3,
      ...points.map((p) => p.times * (1 + p.error)),
      ...recorded.map((r) => r.times),
    );
    const plot = T.plot({
      width,
      height: 220,
      x: { label: "batch", min: 0.9, max: 560, log: true, ticks: BATCHES },
      y: { label: `times as fast on ${state.tp} GPUs as on one`, min: 0, max: most * 1.05 },
      label: `Speed-up of ${state.tp} GPUs over one by batch`,
    });
    const inside = points.filter((p) => !p.outside);
    if (inside.length > 1) {
      plot.area(
        inside.map((p) => [p.batch, p.times * (1 - p.error)]),
        inside.map((p) => [p.batch, p.times * (1 + p.error)]),
        { class: "tpx-area" },
      );
    }
    plot.line(
      [
        [0.9, 1],
        [560, 1],
      ],
      { class: "tpx-one" },
    );
    plot.line(
      points.map((p) => [p.batch, p.times]),
      { class: "tpx-greyline" },
    );
    if (inside.length > 1)
      plot.line(
        inside.map((p) => [p.batch, p.times]),
        { class: "tpx-predicted" },
      );
    plot.line(
      [
        [state.batch, 0],
        [state.batch, most],
      ],
      { class: "tpx-mark" },
    );
    recorded.forEach((r) =>
      plot.dot(
        r.batch,
        r.times,
        { r: 4.5, class: "tpx-recorded" },
        `recorded, ${r.sum}, batch ${r.batch}: ${T.number(r.times)} times`,
      ),
    );
    return [
      plot.node,
      T.legend([
        ["var(--tp-ink)", "recorded", "dot"],
        ["var(--tp-right)", "predicted, and its worst error on runs it was not fitted to", "line"],
        ["var(--tp-missing)", "outside what was fitted", "line"],
      ]),
    ];
  }

  function draw(state, panel) {
    const many = ask(queryOf(state), T.cost),
      one = ask(queryOf(state, 1)),
      width = panel.width(),
      known = many.answer.us !== null;
    const labels = [one, many].map((f) => T.data.machines[f.q.machine].label),
      label = [...new Set(labels)].join("; ");
    const lines = [],
      what = state.phase === "decode" ? "step" : "prefill";
    if (many.error)
      lines.push(
        h("p", {}, h("strong", { class: "tpx-is-wrong" }, "Not measured: "), `${many.error.split(";")[0]} (${label}).`),
      );
    else if (!known)
      lines.push(h("p", {}, h("strong", {}, "Not measured: "), "no run of this kind, so only collectives are known."));
    else if (state.tp > 1 && one.answer.us !== null) {
      const times = one.answer.us / many.answer.us,
        saved = one.answer.us - many.answer.us,
        lost = many.parts.collectives;
      const close = Math.abs(times - 1) < one.band + many.band;
      const seen = [one, many].map((f) => matching(f.q, f.answer.rung, state).find((r) => r.batch === f.q.batch));
      const verdict = (t) =>
        `${state.tp} GPUs are ${T.number(t)} times as fast as one${t > 1 ? "" : ": they don't pay"}.`;
      if (seen[0] && seen[1]) {
        lines.push(
          h(
            "p",
            {},
            h("strong", {}, `Recorded: ${verdict(seen[0].us / seen[1].us)} `),
            `A ${what} took ` + `${T.us(seen[0].us)} on one and ${T.us(seen[1].us)} on ${state.tp} (${seen[1].sum}).`,
          ),
        );
      }
      const model = `${seen[0] && seen[1] ? "The model says" : "Predicted:"} `;
      lines.push(
        h(
          "p",
          {},
          seen[0] && seen[1] ? `${model}${T.number(times)} times` : [h("strong", {}, model + verdict(times))],
          `${close ? " (within its worst error that may be no difference)" : ""}${seen[0] && seen[1] ? ": " : " "}` +
            `${T.us(one.answer.us)} on one, ` +
            `${T.us(many.answer.us)} on ${state.tp}. Splitting takes ${T.us(saved + lost)} off the work of a rank; ` +
            `${T.times(T.sum(Object.values(many.answer.collectives)), "collective")} ` +
            `(${[...new Set(Object.values(many.answer.paths))].join(", ")}) put ${T.us(lost)} back, ` +
            `${T.percent(many.answer.communication_share, 0)} of it. ${crossing(one, many, state)}`,
        ),
      );
    } else {
      const seen = matching(many.q, many.answer.rung, state).find((r) => r.batch === many.q.batch),
        on = T.times(state.tp, "GPU");
      if (seen) {
        lines.push(h("p", {}, h("strong", {}, `Recorded: a ${what} took ${T.us(seen.us)} on ${on}. `)));
        lines.push(
          h("p", {}, `The model says ${T.us(many.answer.us)}, ${T.percent(Math.abs(many.answer.us / seen.us - 1))} off.`),
        );
      } else lines.push(h("p", {}, h("strong", {}, `Predicted: a ${what} takes ${T.us(many.answer.us)} on ${on}.`)));
    }
    const outside = [...new Set([...many.outside, ...(state.tp > 1 ? one.outside : [])])];
    if (known && outside.length) {
      lines.push(
        h(
          "p",
          { class: "tpx-warning" },
          h("strong", {}, "Outside what was fitted: "),
          `${outside.join("; ")}. ` + "The bars are grey: nobody has measured here.",
        ),
      );
    }
    return {
      figure: [
        state.tp > 1 ? bars(one, many, state, width) : bars(one, one, state, width),
        T.legend(
          PARTS.map((p) => [COLOURS[p], NAMES[p]]),
        ),
        h(
          "p",
          { class: "tpx-caption" },
          "The parts are a fit: terms that grow together share the time between them, so no part alone is a " +
            "measurement; the sum is. The line below a bar spans the fit's worst error on runs that it was not fitted to.",
        ),
        state.tp > 1 ? speedups(state, width) : null,
        h(
          "p",
          { class: "tpx-caption" },
          `Fitted to and recorded on ${label}` + `${known ? `, rung ${many.answer.rung}` : ""}.`,
        ),
      ],
      answer: lines,
    };
  }

  const paths = ["push", "one_shot", "two_shot", "nccl"];
  const panel = T.panel(
    root,
    {
      title: "Cost dial: what a step costs, and does a second GPU pay?",
      draw,
      changed: (s, key) => {
        if (key === "phase") s.tokens = s.phase === "decode" ? 192 : 128;
      },
      controls: [
        {
          key: "gpt2",
          kind: "choice",
          label: "Model",
          options: Object.keys(T.data.family)
            .filter((n) => n !== "gpt2-test")
            .map((n) => [n, n]),
        },
        {
          key: "phase",
          kind: "radio",
          label: "What",
          options: [
            ["decode", "decode step"],
            ["prefill", "prefill"],
          ],
        },
        { key: "tp", kind: "radio", label: "GPUs", options: [1, 2, 4, 8].map((n) => [n, String(n)]) },
        { key: "batch", kind: "slide", label: "Batch", values: BATCHES },
        {
          key: "tokens",
          kind: "slide",
          label: "Tokens a sequence",
          values: [64, 128, 192, 256, 384, 512, 704, 768, 864, 1000],
          format: (n) => T.number(n),
        },
        {
          key: "path",
          kind: "choice",
          label: "All-reduce",
          options: [["", "the fastest measured"], ...paths.map((p) => [p, p])],
          hidden: (s) => s.tp === 1 || s.link !== "",
        },
        { key: "link", kind: "choice", label: "Link", options: Object.entries(LINKS), hidden: (s) => s.tp === 1 },
      ],
    },
    { gpt2: "gpt2", phase: "decode", tp: 2, batch: 1, tokens: 192, path: "", link: "", ...initial },
  );
  if (live) live.attach(panel, (s) => ({ ...queryOf(s), sum: s.link ? null : s.path || "auto", link: s.link }));
  return panel;
};
