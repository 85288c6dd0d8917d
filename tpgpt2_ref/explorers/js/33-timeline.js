// T0 to T5 of Diagram 4, stage by stage, with recorded times; and who waits when rank 1 is late.
tpgpt2.explorers.timeline = function (root, initial, live) {
  const T = tpgpt2,
    { h, svg } = T;
  const STAGES = ["T0", "T1", "T2", "T3", "T4", "T5"];
  const TITLES = {
    T0: "hidden states, the same on every rank",
    T1: "c_attn, column-parallel",
    T2: "attention",
    T3: "c_proj, row-parallel: each rank has a part of the sum",
    T4: "all-reduce: the parts become one sum",
    T5: "the result, the same on every rank",
  };
  const PHASES = {
    "decode graph": "decode step, CUDA graph",
    "decode eager": "decode step, kernel by kernel",
    "prefill eager": "prefill, kernel by kernel",
  };
  const phaseOf = (t) => `${t.phase} ${t.graph ? "graph" : "eager"}`;
  const find = (s) =>
    T.data.timelines.find(
      (t) => t.plan === s.plan && phaseOf(t) === s.phase && t.tp === s.tp && !!t.here === (s.source === "here"),
    );

  function picture(t, made, at, width, longest, here) {
    const left = 54,
      right = 8,
      lane = 34,
      gap = 10,
      top = 26,
      n = t.tp;
    const x = (us) => left + (us / longest) * (width - left - right),
      y = (r) => top + r * (lane + gap);
    const shown = STAGES.slice(0, at + 1),
      parts = [];
    for (let r = 0; r < n; r++) {
      parts.push(
        svg("text", { x: 2, y: y(r) + lane / 2 + 4, class: "tpx-strong", fill: T.rankColour(r) }, `rank ${r}`),
        svg("line", { x1: left, x2: width - right, y1: y(r) + lane, y2: y(r) + lane, class: "tpx-lane" }),
      );
    }
    for (const b of made.bars) {
      const on = shown.includes(b.stage),
        wide = Math.max(0.8, x(b.start + b.us) - x(b.start) - 1);
      parts.push(
        svg(
          "rect",
          {
            x: x(b.start),
            y: y(b.rank),
            width: wide,
            height: lane,
            rx: 2,
            class: `tpx-bar tpx-${b.kind}${on ? "" : " tpx-later"}${STAGES[at] === b.stage ? " tpx-now" : ""}`,
          },
          svg("title", {}, `${b.stage} ${b.op || ""} ${b.kind} ${T.us(b.us)}`),
        ),
      );
      if (on && wide > 22 && b.kind !== "waiting") {
        parts.push(
          svg(
            "text",
            { x: x(b.start) + wide / 2, y: y(b.rank) + lane / 2 + 4, "text-anchor": "middle", class: "tpx-on" },
            b.stage,
          ),
        );
      }
      if (on && wide > 46 && b.kind === "waiting") {
        parts.push(
          svg(
            "text",
            { x: x(b.start) + wide / 2, y: y(b.rank) + lane / 2 + 4, "text-anchor": "middle", class: "tpx-inwait" },
            `${T.number(b.us, 0)} µs`,
          ),
        );
      }
    }
    const height = y(n) + 16,
      axis = [];
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((s) => longest / s <= Math.max(3, width / 90)) || 2000;
    for (let us = 0; us <= longest; us += step) {
      axis.push(
        svg("line", { x1: x(us), x2: x(us), y1: top - 4, y2: y(n) - gap + 4, class: "tpx-grid" }),
        svg("text", { x: x(us), y: y(n) + 8, "text-anchor": "middle", class: "tpx-small" }, us === 0 ? "0 µs" : us),
      );
    }
    if (at === 5) {
      axis.push(
        svg("line", { x1: x(made.end), x2: x(made.end), y1: top - 8, y2: y(n) - gap + 4, class: "tpx-mark" }),
        svg(
          "text",
          { x: Math.min(x(made.end), width - 30), y: top - 12, "text-anchor": "middle", class: "tpx-small" },
          `T5: ${T.us(made.end)}`,
        ),
      );
    }
    return T.drawing(
      width,
      height,
      `${n} lanes, one a rank, to ${STAGES[at]}. The half layer ends after ${T.us(made.end)}.`,
      axis,
      parts,
    );
  }

  function draw(state, panel) {
    const t = find(state),
      at = state.at,
      now = STAGES[at],
      width = panel.width();
    const made = T.lateTimeline(t, state.late),
      prompt = T.lateTimeline(t, 0);
    const longest = Math.max(made.end, prompt.end * 1.5) * 1.02;
    const payload = T.sum(t.stages.filter((s) => s.op && STAGES.indexOf(s.stage) <= at).map((s) => s.bytes));
    const calls = t.stages.filter((s) => s.op && STAGES.indexOf(s.stage) <= at);
    const table = T.table(
      ["on each rank", "shape"],
      T.shapes(t, now).map(([what, shape]) => [what, shape]),
      `${now}: ${now === "T2" && t.plan === "as-drawn" ? "three gathers, then attention over all heads" : TITLES[now]}`,
    );
    const more = made.end - prompt.end,
      extra = t.step_us + more,
      each = t.step_us + more * t.layers;
    const waiters = made.waits.map((w, r) => [r, w]).filter(([, w]) => w > 0.5);
    const lines = [
      h(
        "p",
        {},
        h("strong", {}, `${now}: ${TITLES[now]}. `),
        `So far ${T.times(calls.length, "collective")}${calls.length ? `, ${T.bytes(payload)} handed over by each rank` : ""}.`,
      ),
    ];
    if (state.late > 0) {
      const first = t.stages.find((s) => s.op);
      const who = waiters
        .filter(([r]) => r !== 1)
        .map(([r, w]) => `rank ${r} waits ${T.us(w)}`)
        .join(", ");
      lines.push(
        h(
          "p",
          {},
          h("strong", {}, `Rank 1 is ${state.late} µs late: `),
          `${who || "nobody waits"} at the first ` +
            `collective (${first.op}), and every rank ends ${T.us(more)} later. A whole step of ${t.layers} layers grows from ` +
            `${T.us(t.step_us)} to ${T.us(extra)} (${T.percent(more / t.step_us, 1)}) if it happens once, to ${T.us(each)} if ` +
            "in every layer.",
        ),
      );
    }
    return {
      figure: [
        picture(t, made, at, width, longest),
        T.legend([
          ["var(--tp-computing)", "computing"],
          ["var(--tp-waiting)", "waiting for another rank"],
          ["var(--tp-moving)", "moving: a collective"],
        ]),
        T.stepper(panel, "at", 5, "Stages T0 to T5"),
        table,
        h(
          "p",
          { class: "tpx-caption" },
          `Medians over ${t.layers} layers of ${t.model}, batch ${t.batch}, ${t.prompt_len} tokens, ` +
            `${t.backend}. ${t.here ? "Measured" : "Recorded"}: ${t.label}. Gaps between kernels are left out.`,
        ),
      ],
      answer: lines,
    };
  }

  function settle(state) {
    // the nearest recording to what was just asked for
    if (find(state)) return;
    const score = (t) => (t.tp === state.tp) * 1 + (t.plan === state.plan) * 2 + (phaseOf(t) === state.phase) * 1.5;
    if (state.source === "here") {
      state.source = "recorded";
      if (find(state)) return;
    }
    const t = T.least(
      T.data.timelines.filter((c) => !c.here),
      (c) => -score(c),
    );
    Object.assign(state, { plan: t.plan, phase: phaseOf(t), tp: t.tp });
  }

  const can = (state, change) => !!find({ ...state, ...change });
  const state = { plan: "shipped", phase: "decode graph", tp: 2, late: 0, at: 5, source: "recorded", ...initial };
  settle(state);
  const panel = T.panel(
    root,
    {
      title: "T0 to T5: half a layer on a clock, and what a late rank costs",
      draw,
      changed: settle,
      controls: [
        {
          key: "plan",
          kind: "radio",
          label: "Plan",
          options: (s) =>
            [
              ["shipped", "shipped"],
              ["as-drawn", "as drawn"],
            ].map(([v, w]) => [
              v,
              w,
              T.data.timelines.some((t) => t.plan === v && t.tp === s.tp) ? "" : "not recorded",
            ]),
        },
        {
          key: "phase",
          kind: "choice",
          label: "What runs",
          options: (s) => Object.entries(PHASES).filter(([v]) => can(s, { phase: v })),
        },
        {
          key: "tp",
          kind: "radio",
          label: "Ranks",
          options: (s) =>
            [...new Set(T.data.timelines.map((t) => t.tp))].map((n) => [
              n,
              String(n),
              can(s, { tp: n }) ? "" : "not recorded as drawn",
            ]),
        },
        {
          key: "source",
          kind: "radio",
          label: "Times",
          options: (s) => [
            ["recorded", "recorded"],
            ["here", "measured here", can(s, { source: "here" }) ? "" : "not measured"],
          ],
          hidden: () => !T.data.timelines.some((t) => t.here),
        },
        {
          key: "late",
          kind: "slide",
          label: "Rank 1 is late by",
          values: [0, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 500],
          format: (v) => `${v} µs`,
        },
      ],
    },
    state,
  );
  if (live)
    live.attach(
      panel,
      (s) => ({
        plan: s.plan,
        phase: s.phase.split(" ")[0],
        graph: s.phase.endsWith("graph"),
        tp: s.tp,
        batch: find(s).batch,
        prompt_len: find(s).prompt_len,
        model: find(s).model,
      }),
      (s, found) => {
        T.data.timelines = [
          found.timeline,
          ...T.data.timelines.filter(
            (t) =>
              !(
                t.here &&
                t.plan === found.timeline.plan &&
                t.tp === found.timeline.tp &&
                phaseOf(t) === phaseOf(found.timeline)
              ),
          ),
        ];
        s.source = "here";
      },
    );
  return panel;
};
