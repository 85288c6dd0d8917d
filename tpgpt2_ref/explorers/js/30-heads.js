// Head dealer: Diagram 2's cut of c_attn, by head or as a naive half.
tpgpt2.explorers.heads = function (root, initial) {
  const T = tpgpt2,
    { h, svg } = T;
  const NAMES = ["Q", "K", "V"];

  function draw(state, panel) {
    const found = T.heads(state),
      { hidden: d, head_size: size, heads, ranks, tp, parted } = found;
    const width = panel.width(),
      left = 22,
      all = (heads + found.padding_heads) * size,
      row = 34,
      gap = 8,
      top = 20,
      labels = [];
    const x = (column) => left + (column / all) * (width - left - 2),
      bad = new Set(parted),
      shapes = [];
    NAMES.forEach((name, i) => {
      const y = top + i * (row + gap),
        key = name.toLowerCase();
      shapes.push(svg("text", { x: 2, y: y + row / 2 + 4, class: "tpx-strong" }, name));
      for (const rank of ranks) {
        const [start, stop] = rank[key];
        if (stop === start) continue;
        shapes.push(
          svg(
            "rect",
            { x: x(start), y, width: x(stop) - x(start), height: row, fill: T.rankColour(rank.rank) },
            svg("title", {}, `rank ${rank.rank}: columns ${start} to ${stop - 1} of ${name}`),
          ),
        );
        if (x(stop) - x(start) > 12) {
          labels.push([
            {
              x: (x(start) + x(stop)) / 2,
              y: y + row / 2 + 4,
              class: "tpx-on",
              "text-anchor": "middle",
              stroke: T.rankColour(rank.rank),
            },
            x(stop) - x(start) > 60 ? `rank ${rank.rank}` : rank.rank,
          ]);
        }
      }
      for (let k = 0; k < heads + found.padding_heads; k++) {
        const empty = k >= heads;
        shapes.push(
          svg(
            "rect",
            {
              x: x(k * size),
              y,
              width: x(size) - x(0),
              height: row,
              fill: bad.has(k) ? "url(#tpx-bad)" : "none",
              class: empty ? "tpx-empty" : bad.has(k) ? "tpx-bad" : "tpx-head",
            },
            svg("title", {}, empty ? "a head of zeros" : `head ${k}${bad.has(k) ? ": its q, k and v are parted" : ""}`),
          ),
        );
      }
    });
    const label = Math.max(1, Math.ceil(heads / Math.floor((width - left) / 22)));
    for (let k = 0; k < heads; k += label) {
      shapes.push(
        svg(
          "text",
          { x: (x(k * size) + x((k + 1) * size)) / 2, y: 13, "text-anchor": "middle", class: "tpx-small" },
          k,
        ),
      );
    }
    const height = top + 3 * (row + gap);
    const picture = T.drawing(
      width,
      height,
      `Columns of Q, K and V over ${heads} heads, by the rank that holds them. ` +
        `${parted.length} heads are parted.`,
      svg(
        "pattern",
        { id: "tpx-bad", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 2.4, height: 6, fill: "var(--tp-wrong)" }),
      ),
      shapes,
      labels.map(([where, words]) => svg("text", where, words)),
    );
    const range = ([start, stop], name) =>
      stop === start ? "none" : start === 0 && stop === d ? `all of ${name}` : `${start} to ${stop - 1}`;
    const table = T.table(
      ["rank", "of Q", "of K", "of V", "whole heads"],
      ranks.map((r) => [
        String(r.rank),
        range(r.q, "Q"),
        range(r.k, "K"),
        range(r.v, "V"),
        r.whole_heads.length
          ? r.whole_heads.length > 1
            ? `${r.whole_heads[0]} to ${r.whole_heads.at(-1)}`
            : `${r.whole_heads[0]}`
          : "none",
      ]),
      "Columns that each rank holds",
    );
    return {
      figure: [h("p", { class: "tpx-caption" }, "The columns of c_attn's Q, K and V, head by head"), picture, table],
      answer: words(found, tp, heads, d),
    };
  }

  function words(found, tp, heads, d) {
    const { parted } = found,
      drawn = T.h("span", {}, ` Diagram 2 says D/4 = ${found.diagram_width}`);
    if (tp === 1) return [h("p", {}, `One rank holds all ${heads} heads: nothing is cut.`)];
    if (found.cut === "by head") {
      const pad = found.padding_heads
        ? ` ${heads} heads don't divide by ${tp}, so ${T.times(found.padding_heads, "head")} ` +
          `of zeros ${found.padding_heads === 1 ? "is" : "are"} added: ${heads + found.padding_heads} in all.`
        : "";
      return [
        h(
          "p",
          {},
          h("strong", {}, `No head is parted. `),
          `Each of ${tp} ranks has q, k and v of ` +
            `${T.times(found.heads_a_rank, "head")}, so attention needs nothing from anyone.${pad}`,
        ),
        h(
          "p",
          {},
          `Widths on a rank: q, k and v ${found.q_width} each, c_attn's output ${T.number(found.qkv_width)}.`,
          drawn,
          tp === 2
            ? `: ${T.number(found.diagram_width / found.q_width, 2)} times what a rank really holds, ` +
              `${found.heads_a_rank} heads of ${found.head_size} in each of q, k and v.`
            : ", for two ranks.",
        ),
      ];
    }
    const first = found.ranks[0],
      has = ["q", "k", "v"]
        .filter((k) => first[k][1] > first[k][0])
        .map((k) =>
          first[k][1] - first[k][0] === d
            ? `all of ${k.toUpperCase()}`
            : `${first[k][1] - first[k][0]} columns of ` + k.toUpperCase(),
        );
    return [
      h(
        "p",
        {},
        h("strong", { class: "tpx-is-wrong" }, `${parted.length} of ${heads} heads are parted. `),
        `Columns in a row give rank 0 ${has.join(" and ")}.`,
        parted.length === heads
          ? " No rank has q, k and v of any head: attention can't begin without a gather."
          : " For a parted head attention can't begin without a gather.",
      ),
    ];
  }

  const family = Object.keys(T.data.family).filter((name) => name !== "gpt2-test");
  return T.panel(
    root,
    {
      title: "Head dealer: who gets which heads?",
      draw,
      controls: [
        {
          key: "gpt2",
          kind: "choice",
          label: "Model",
          options: family.map((n) => [n, `${n}, ${T.data.family[n].n_head} heads`]),
        },
        { key: "tp", kind: "slide", label: "Ranks", values: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] },
        { key: "cut", kind: "radio", label: "Cut", options: T.data.cuts.map((c) => [c, c]) },
      ],
    },
    { gpt2: "gpt2", tp: 2, cut: "by head", ...initial },
  );
};
