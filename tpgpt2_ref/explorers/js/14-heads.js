// Who gets which heads of a cut c_attn: explorers/heads.py, the same.
(function (T) {
  // query: {gpt2, tp, cut: "by head" or "naive half"} -> widths, what each rank holds, which heads are parted
  T.heads = function (query) {
    const { gpt2, tp, cut } = query,
      config = T.data.family[gpt2];
    if (!config) throw new T.UserError(`unknown model '${gpt2}'; known: ${Object.keys(T.data.family).join(", ")}`);
    if (!T.data.cuts.includes(cut)) throw new T.UserError(`unknown cut '${cut}'; known: ${T.data.cuts.join(", ")}`);
    if (tp < 1) throw new T.UserError(`at least 1 rank, not ${tp}`);
    const d = config.n_embd,
      heads = config.n_head,
      size = d / heads,
      byHead = cut === "by head";
    const local = Math.ceil(heads / tp),
      ranks = [];
    for (let r = 0; r < tp; r++) {
      // columns of Q, of K and of V on this rank, each counted from the start of its own matrix
      const columns = ["q", "k", "v"].map((_, i) => {
        const [low, high] = byHead
          ? [r * local * size, (r + 1) * local * size]
          : [Math.floor((r * 3 * d) / tp) - i * d, Math.floor(((r + 1) * 3 * d) / tp) - i * d];
        const start = Math.min(Math.max(low, 0), d),
          stop = Math.min(Math.max(high, 0), d);
        return [start, Math.max(stop, start)];
      });
      const holds = (h) => columns.every(([start, stop]) => start <= h * size && (h + 1) * size <= stop);
      ranks.push({
        rank: r,
        q: columns[0],
        k: columns[1],
        v: columns[2],
        whole_heads: [...Array(heads).keys()].filter(holds),
      });
    }
    const whole = new Set(ranks.flatMap((r) => r.whole_heads));
    return {
      gpt2,
      tp,
      cut,
      hidden: d,
      heads,
      head_size: size,
      heads_a_rank: byHead ? local : null,
      padding_heads: byHead ? local * tp - heads : 0,
      q_width: byHead ? local * size : null,
      qkv_width: byHead ? 3 * local * size : null,
      diagram_width: Math.floor(d / 4),
      ranks,
      parted: [...Array(heads).keys()].filter((h) => !whole.has(h)),
    };
  };
})(tpgpt2);
