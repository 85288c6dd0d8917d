// Collective stepper: an all-reduce round by round, its steps and bytes counted against the formulas.
tpgpt2.explorers.collective = function (root, initial, live) {
  const T = tpgpt2,
    { h, svg } = T;
  const NAMES = { ring: "ring", one_shot: "one-shot", two_shot: "two-shot", push: "push", two_shot_push: "two-shot push" };
  const STEPS = {
    ring: (n) => `2(n−1) = ${2 * (n - 1)}`,
    one_shot: () => "1",
    two_shot: () => "2",
    push: () => "1",
    two_shot_push: () => "2",
  };
  const PATHS = { ring: "nccl", one_shot: "one_shot", two_shot: "two_shot", push: "push", two_shot_push: "two_shot_push" };
  let playing = null;

  function picture(n, rounds, at, width) {
    const side = Math.min(92, width * 0.2),
      left = 54,
      row = n > 5 ? 34 : 42,
      gap = 12,
      top = 20;
    const cell = (width - left - side) / n,
      now = at ? rounds[at - 1] : null;
    const held = now ? now.after : [...Array(n).keys()].map((r) => [...Array(n).keys()].map(() => new Set([r])));
    const before = at > 1 ? rounds[at - 2].after : null;
    const y = (r) => top + r * (row + gap),
      shapes = [];
    for (let c = 0; c < n; c++) {
      shapes.push(
        svg(
          "text",
          { x: left + (c + 0.5) * cell, y: 13, "text-anchor": "middle", class: "tpx-small" },
          n <= 4 && width > 500 ? `chunk ${c}` : c,
        ),
      );
    }
    for (let r = 0; r < n; r++) {
      shapes.push(svg("text", { x: 2, y: y(r) + row / 2 + 4, class: "tpx-strong" }, `rank ${r}`));
      for (let c = 0; c < n; c++) {
        const x = left + c * cell + 1.5,
          wide = cell - 3,
          parts = held[r][c],
          whole = parts.size === n;
        const fresh =
          now && now.moves.some((m) => m.to === r && m.chunk === c) && (!before || before[r][c].size !== parts.size);
        for (const p of parts) {
          shapes.push(
            svg("rect", { x: x + (p * wide) / n, y: y(r), width: wide / n, height: row, fill: T.rankColour(p) }),
          );
        }
        shapes.push(
          svg(
            "rect",
            {
              x,
              y: y(r),
              width: wide,
              height: row,
              rx: 2,
              fill: "none",
              class: whole ? "tpx-done" : fresh ? "tpx-fresh" : "tpx-cell",
            },
            svg("title", {}, `rank ${r}, chunk ${c}: holds the parts of ${parts.size} of ${n} ranks`),
          ),
        );
        if (whole) {
          shapes.push(
            svg("text", { x: x + wide / 2, y: y(r) + row / 2 + 5, "text-anchor": "middle", class: "tpx-on" }, "Σ"),
          );
        }
      }
    }
    const arrows = [],
      pairs = new Set();
    for (const m of now ? now.moves : []) {
      const key = `${m.from} ${m.to}`;
      if (pairs.has(key)) continue;
      pairs.add(key);
      const x = width - side + 4,
        far = Math.abs(m.to - m.from),
        bend = 12 + (side - 26) * Math.min(1, far / n);
      const shift = m.to > m.from ? -4 : 4,
        y1 = y(m.from) + row / 2 + shift,
        y2 = y(m.to) + row / 2 + shift;
      arrows.push(
        svg("path", {
          class: "tpx-move",
          fill: "none",
          "marker-end": "url(#tpx-arrow)",
          d: `M${x},${y1}C${x + bend},${y1} ${x + bend},${y2} ${x + 5},${y2}`,
        }),
      );
    }
    if (now && now.barrier) {
      arrows.push(
        svg("line", { class: "tpx-barrier", x1: width - side / 2, x2: width - side / 2, y1: top, y2: y(n) - gap }),
        svg("text", { x: width - side / 2 + 5, y: y(0) + 12, class: "tpx-small" }, "wait"),
      );
    }
    const height = y(n) - gap + 4;
    return T.drawing(
      width,
      height,
      now
        ? `After step ${at}: ${now.what}`
        : `Before the call: each rank holds its own part of all ${n} chunks`,
      svg(
        "marker",
        { id: "tpx-arrow", viewBox: "0 0 8 8", refX: 6, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto" },
        svg("path", { d: "M0,0L8,4L0,8Z", fill: "var(--tp-moving)" }),
      ),
      shapes,
      arrows,
    );
  }

  function recorded(state, width) {
    const { world, bytes, dots = [] } = state;
    const machine = Object.values(T.data.machines).find((m) =>
      m.collectives.rows.some((r) => r.world === world && r.graph && !r.path.includes("/")),
    );
    if (!machine && !dots.length) {
      return h("p", { class: "tpx-caption" }, `Not measured with ${world} ranks: the book's runs have 2 and 4.`);
    }
    const rows = machine
      ? machine.collectives.rows.filter((r) => r.world === world && r.graph && !r.path.includes("/"))
      : [];
    const here = dots.filter((d) => d.world === world),
      all = [...rows, ...here].map((r) => r.us_median);
    const plot = T.plot({
      width,
      height: 250,
      label: `Recorded microseconds of an all-reduce by its size, ${world} ranks`,
      x: {
        label: "bytes of one rank's tensor",
        min: 256,
        max: 2 ** 30,
        log: true,
        format: T.bytes,
        ticks: [8, 12, 16, 20, 24, 28].map((p) => 2 ** p),
      },
      y: { label: "µs a call", min: 1, max: Math.max(10000, ...all) * 1.2, log: true },
    });
    const names = [];
    for (const [algorithm, path] of Object.entries(PATHS)) {
      const mine = rows.filter((r) => r.path === path),
        on = algorithm === state.algorithm;
      if (!mine.length) continue;
      const colour = on ? "var(--tp-moving)" : "var(--tp-missing)";
      plot.line(
        mine.map((r) => [r.bytes, r.us_median]),
        { stroke: colour, "stroke-width": on ? 2.5 : 1.2 },
      );
      if (on)
        mine.forEach((r) =>
          plot.dot(
            r.bytes,
            r.us_median,
            { r: 2.6, fill: colour },
            `${path}, ${T.bytes(r.bytes)}: ${T.us(r.us_median)}`,
          ),
        );
      names.push({ y: plot.y(mine[0].us_median) - 5, at: mine[0], on, words: path === "nccl" ? "NCCL" : NAMES[algorithm] });
    }
    names.sort((a, b) => a.y - b.y);
    names.forEach((name, i) => {
      if (i) name.y = Math.max(name.y, names[i - 1].y + 13); // a line of text apart
      plot.text(name.at.bytes, name.at.us_median, name.words, {
        dx: 4,
        dy: name.y - plot.y(name.at.us_median),
        class: `tpx-small tpx-named ${name.on ? "tpx-strong" : ""}`,
      });
    });
    plot.line(
      [
        [bytes, 1],
        [bytes, Math.max(10000, ...all)],
      ],
      { class: "tpx-mark" },
    );
    here.forEach((r) =>
      plot.dot(r.bytes, r.us_median, { r: 5.5, class: "tpx-here" }, `here, ${r.path}: ${T.us(r.us_median)}`),
    );
    return [
      plot.node,
      h(
        "p",
        { class: "tpx-caption" },
        machine ? `Recorded: ${machine.collectives.label}, in CUDA graphs. ` : "",
        state.algorithm === "ring"
          ? "NCCL's line stands for the ring: NCCL itself chooses between ring, tree and " + "NVLS."
          : "",
      ),
    ];
  }

  function draw(state, panel) {
    const said = T.collective(state),
      n = state.world,
      rounds = T.rounds(state.algorithm, n);
    state.at = Math.min(state.at, rounds.length);
    const at = state.at,
      seen = rounds.slice(0, at),
      width = panel.width();
    const steps = seen.filter((r) => r.moves.length).length,
      barriers = seen.filter((r) => r.barrier).length;
    const out = (seen.flatMap((r) => r.moves).filter((m) => m.from === 0).length / n) * state.bytes;
    const finished = at === rounds.length,
      right = steps === said.steps && Math.abs(out - said.bytes_out) < 1e-6;
    const share = T.number(said.bytes_out / state.bytes, 2);
    const play = h(
      "button",
      { type: "button", "data-focus": "play", "aria-pressed": String(!!playing), onclick: toggle },
      playing ? "Pause" : "Play",
    );
    const row = T.stepper(panel, "at", rounds.length, "Steps of the call");
    row.prepend(play);
    const counts = T.table(
      ["", "counted so far", "formula"],
      [
        ["steps in which data moves", String(steps), STEPS[state.algorithm](n)],
        ["barriers", String(barriers), String(said.barriers)],
        [
          "bytes out of a rank",
          T.number(out, 0),
          `${
            ["one_shot", "push"].includes(state.algorithm) ? "(n−1)" : "2(n−1)/n"
          } · S = ${share} S = ${T.number(said.bytes_out, 0)}`,
        ],
      ],
      "Counted against the formula",
    );
    return {
      figure: [picture(n, rounds, at, width), row, counts, recorded(state, width)],
      answer: [
        h(
          "p",
          {},
          h(
            "strong",
            {},
            at
              ? `${at} of ${rounds.length}: ${seen.at(-1).what}.`
              : `Before the call: each of ` + `${n} ranks holds its own ${T.bytes(state.bytes)}, in ${n} chunks.`,
          ),
        ),
        finished &&
          h(
            "p",
            {},
            `Every rank holds the whole sum. A ${NAMES[state.algorithm]} over ${n} ranks takes ` +
              `${T.times(said.steps, "step")}${said.barriers ? ` and ${said.barriers} barriers` : ""}, and ${share} times the ` +
              `tensor leaves each rank: ${right ? "as the formula says" : "not what the formula says"}.`,
          ),
      ],
    };
  }

  function toggle() {
    if (playing) stop();
    else {
      const last = T.rounds(panel.state.algorithm, panel.state.world).length;
      if (panel.state.at >= last) panel.state.at = 0;
      playing = setInterval(() => {
        panel.state.at += 1;
        if (panel.state.at >= T.rounds(panel.state.algorithm, panel.state.world).length || !panel.card.isConnected)
          stop();
        panel.update();
      }, 900);
    }
    panel.update();
  }

  function stop() {
    clearInterval(playing);
    playing = null;
  }

  const state = { algorithm: "ring", world: 4, bytes: 1536, at: 0, ...initial };
  const sizes = [...new Set([...Array.from({ length: 19 }, (_, i) => 2 ** (8 + i)), 1536, state.bytes])].sort(
    (a, b) => a - b,
  );
  const panel = T.panel(
    root,
    {
      title: "Collective stepper: what an all-reduce says, and in how many steps",
      draw,
      changed: (s, key) => {
        if (["algorithm", "world"].includes(key)) {
          s.at = 0;
          stop();
        }
      },
      controls: [
        { key: "algorithm", kind: "radio", label: "Algorithm", options: T.data.algorithms.map((a) => [a, NAMES[a]]) },
        { key: "world", kind: "slide", label: "Ranks n =", values: [2, 3, 4, 5, 6, 7, 8] },
        {
          key: "bytes",
          kind: "slide",
          label: "Tensor S =",
          values: sizes,
          format: (n) => (n === 1536 ? "1,536 B (one token)" : T.bytes(n)),
        },
      ],
    },
    state,
  );
  if (live) live.attach(panel, (s) => ({ algorithm: s.algorithm, world: s.world, bytes: s.bytes }));
  return {
    close() {
      stop();
      panel.close();
    },
  };
};
