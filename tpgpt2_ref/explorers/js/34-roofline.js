// Roofline: every recorded row of attention under the ceilings of its GPU.
tpgpt2.explorers.roofline = function (root, initial, live) {
  const T = tpgpt2,
    { h, svg } = T,
    SIZE = { float32: 4, float16: 2, bfloat16: 2 };
  const machines = Object.entries(T.data.machines).filter(([, m]) => m.attention.rows.length);
  const names = T.data.matrix
    .map((r) => r.name)
    .filter((n) => machines.some(([, m]) => m.attention.rows.some((r) => r.backend === n)));
  const MARKS = {
    FLASH_ATTN_3: "3",
    FLASH_ATTN_4: "4",
    FLASH_ATTN_2: "2",
    FLEX_ATTENTION: "F",
    XFORMERS: "X",
    TRITON_ATTN: "T",
    FLASHINFER: "I",
    SDPA: "S",
    NAIVE: "N",
  };
  const mark = (name) => MARKS[name] || name[0];

  // Operations and bytes that cannot be avoided: each query sees the keys before it, q, k, v and the result move once
  T.attentionWork = function (r) {
    const width = r.heads * r.head_size,
      one = r.phase === "decode";
    const pairs = one ? r.batch * r.seq_len : (r.batch * r.seq_len * (r.seq_len + 1)) / 2;
    const flops = 4 * width * pairs,
      moved = r.batch * width * SIZE[r.dtype] * (one ? 2 * r.seq_len + 2 : 4 * r.seq_len);
    return {
      flops,
      bytes: moved,
      intensity: flops / moved,
      tflops: flops / r.us_median / 1e6,
      gb_per_s: moved / r.us_median / 1e3,
    };
  };

  const roof = (sheet, dtype, copy, intensity) => Math.min((copy * intensity) / 1e3, sheet.tflop_per_s[dtype]);
  const shapeOf = (r) => [r.phase, r.batch, r.seq_len, r.head_size, r.dtype].join(" ");
  const inWords = (r) => `${r.phase}, batch ${r.batch}, ${T.number(r.seq_len)} tokens, head ${r.head_size}, ${r.dtype}`;

  function chosen(state) {
    const rows = T.data.machines[state.machine].attention.rows.concat(state.dots || []);
    return rows.filter(
      (r) =>
        ["phase", "batch", "head_size", "dtype"].every((k) => state[k] === "all" || r[k] === state[k]) &&
        state.backends.includes(r.backend),
    );
  }

  function draw(state, panel) {
    const machine = T.data.machines[state.machine],
      { sheet, copy_gb_per_s: copy } = machine.ceilings;
    const rows = chosen(state).map((r) => ({ ...r, ...T.attentionWork(r) }));
    rows.sort(
      (a, b) =>
        a.intensity - b.intensity ||
        (shapeOf(a) < shapeOf(b) ? -1 : shapeOf(a) > shapeOf(b) ? 1 : 0) ||
        a.us_median - b.us_median,
    );
    state.at = Math.max(0, Math.min(state.at, rows.length - 1));
    const width = panel.width(),
      dtype = state.dtype === "all" ? "float16" : state.dtype;
    const all = machine.attention.rows.map(T.attentionWork),
      lowest = Math.min(...all.map((a) => a.tflops));
    const x = { label: "operations a byte", min: 0.3, max: 2000, log: true };
    const plot = T.plot({
      width,
      height: 360,
      x,
      label: `Roofline of ${rows.length} recorded rows`,
      y: { label: "TFLOP/s", min: lowest / 2, max: 2000, log: true },
    });
    const slope = (gb) => {
      const knee = (sheet.tflop_per_s[dtype] * 1e3) / gb;
      return [
        [x.min, (gb * x.min) / 1e3],
        [knee, sheet.tflop_per_s[dtype]],
        [x.max, sheet.tflop_per_s[dtype]],
      ];
    };
    if (sheet) {
      plot.line(slope(sheet.gb_per_s), { class: "tpx-roof tpx-sheet" });
      plot.text(x.max, sheet.tflop_per_s[dtype], `${sheet.tflop_per_s[dtype]} TFLOP/s, data sheet`, {
        dy: -6,
        dx: -4,
        "text-anchor": "end",
        class: "tpx-small",
      });
    }
    if (copy && sheet) plot.line(slope(copy).slice(0, 2), { class: "tpx-roof" });
    const letters = width >= 480 || state.batch !== "all"; // on a phone those of all batches would overlap
    rows.forEach((r, i) => {
      const place = names.indexOf(r.backend) - (names.length - 1) / 2;
      const spread = Math.min(9, width / 75),
        cx = plot.x(r.intensity) + place * spread,
        on = i === state.at;
      const dot = svg(
        "g",
        {
          class: `tpx-letter ${on ? "tpx-on-it" : ""} ${r.here ? "tpx-here" : ""}`,
          onclick: () => {
            state.at = i;
            panel.update();
          },
        },
        svg("circle", { cx, cy: plot.y(r.tflops), r: on ? 8 : 5.5 }),
        (letters || on) && svg("text", { x: cx, y: plot.y(r.tflops) + 3, "text-anchor": "middle" }, mark(r.backend)),
        svg("title", {}, `${r.backend}: ${inWords(r)}: ${T.us(r.us_median)}`),
      );
      plot.layer.append(dot);
    });
    const last = plot.layer.querySelector(".tpx-on-it");
    if (last) plot.layer.append(last);
    const r = rows[state.at],
      answer = [];
    if (!r) answer.push(h("p", {}, "No recorded row fits these filters."));
    else {
      const limit = sheet ? roof(sheet, r.dtype, copy || sheet.gb_per_s, r.intensity) : null;
      const bound = limit === null ? "" : limit < sheet.tflop_per_s[r.dtype] ? "memory" : "arithmetic";
      answer.push(
        h(
          "p",
          {},
          h("strong", {}, `${r.backend}${r.here ? " (here)" : ""}: ${T.us(r.us_median)} `),
          `(p10 to p90 ${T.number(r.us_p10, 1)} to ${T.number(r.us_p90, 1)}), ${inWords(r)}: ` +
            `${T.times(Number(r.intensity.toFixed(1)), "operation")} a byte, ${T.number(r.tflops)} TFLOP/s, ${T.number(r.gb_per_s)} GB/s` +
            (limit === null
              ? "."
              : `: ${T.percent(r.tflops / limit, r.tflops / limit < 0.1 ? 1 : 0)} of what ${bound} allows.`),
        ),
        h("p", { class: "tpx-caption" }, `Row ${state.at + 1} of ${rows.length}.`),
      );
    }
    const keys = (e) => {
      const to = { ArrowRight: state.at + 1, ArrowLeft: state.at - 1, Home: 0, End: rows.length - 1 }[e.key];
      if (to === undefined) return;
      e.preventDefault();
      state.at = to;
      panel.update();
    };
    plot.node.setAttribute("tabindex", "0");
    plot.node.setAttribute("data-focus", "plot");
    plot.node.addEventListener("keydown", keys);
    const beside = r ? rows.filter((o) => shapeOf(o) === shapeOf(r)) : [];
    return {
      figure: [
        plot.node,
        h(
          "p",
          { class: "tpx-caption" },
          `${letters ? "A letter" : "A circle"} is a recorded row: click one, or step through them with the arrow keys. ` +
            "Marks that would overlap are moved sideways; small batches lie low, because a kernel has a floor of some " +
            "microseconds, whatever it does. Solid slope: memory as a copy was measured" +
            `${copy ? `, ${T.number(copy)} GB/s` : ""}; dashed: the data sheet${sheet ? `, ${T.number(sheet.gb_per_s)} GB/s` : ""}. ` +
            `Recorded: ${machine.attention.label}.`,
        ),
        beside.length
          ? T.table(
              ["backend", "µs", "TFLOP/s", "GB/s", "of the ceiling"],
              [...beside]
                .sort((a, b) => a.us_median - b.us_median)
                .map((o) => [
                  `${mark(o.backend)}  ${o.backend}${o.here ? " (here)" : ""}`,
                  T.number(o.us_median, 1),
                  T.number(o.tflops),
                  T.number(o.gb_per_s),
                  sheet
                    ? `${T.number((100 * o.tflops) / roof(sheet, o.dtype, copy || sheet.gb_per_s, o.intensity))} %`
                    : "unknown",
                ]),
              inWords(r),
            )
          : null,
      ],
      answer,
    };
  }

  const rowsOf = (s) => T.data.machines[s.machine].attention.rows;
  const values = (key) => (s) => [
    ["all", "all"],
    ...[...new Set(rowsOf(s).map((r) => r[key]))].sort((a, b) => (a < b ? -1 : 1)).map((v) => [v, String(v)]),
  ];
  const panel = T.panel(
    root,
    {
      title: "Roofline: how near each kernel comes to what its GPU allows",
      draw,
      changed: (s, key) => {
        if (key !== "at") s.at = 0;
      },
      controls: [
        {
          key: "machine",
          kind: "choice",
          label: "Machine",
          options: machines.map(([slug, m]) => [slug, m.device]),
          hidden: () => machines.length < 2,
        },
        {
          key: "phase",
          kind: "radio",
          label: "Phase",
          options: [
            ["all", "both"],
            ["decode", "decode"],
            ["prefill", "prefill"],
          ],
        },
        { key: "head_size", kind: "choice", label: "Head size", options: values("head_size") },
        { key: "batch", kind: "choice", label: "Batch", options: values("batch") },
        { key: "dtype", kind: "choice", label: "dtype", options: values("dtype") },
        { key: "backends", kind: "checks", label: "Backends", options: names.map((n) => [n, `${mark(n)}  ${n}`]) },
      ],
    },
    {
      machine: machines[0][0],
      phase: "all",
      head_size: 64,
      batch: "all",
      dtype: "float16",
      backends: names,
      at: 0,
      ...initial,
    },
  );
  if (live) {
    live.attach(panel, (s) => {
      const r = chosen(s)[s.at];
      return (
        r && {
          backend: r.backend,
          phase: r.phase,
          batch: r.batch,
          seq_len: r.seq_len,
          head_size: r.head_size,
          dtype: r.dtype,
        }
      );
    });
  }
  return panel;
};
