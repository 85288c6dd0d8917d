// Half a layer of Diagram 4 as it runs when a rank is late, and the shapes of its stages.
(function (T) {
  // The half layer as it runs when rank 1 begins `late` microseconds after the others: bars by rank, with their waiting
  T.lateTimeline = function (recorded, late) {
    const n = recorded.tp,
      clock = Array.from({ length: n }, (_, r) => (r === 1 ? late : 0)),
      bars = [];
    for (const { stage, op, bytes, path, us } of recorded.stages) {
      const last = Math.max(...clock);
      for (let r = 0; r < n; r++) {
        if (op) {
          if (last > clock[r]) bars.push({ rank: r, stage, kind: "waiting", op, start: clock[r], us: last - clock[r] });
          bars.push({ rank: r, stage, kind: "moving", op, path, bytes, start: last, us: us[r] });
          clock[r] = last + us[r];
        } else {
          bars.push({ rank: r, stage, kind: "computing", start: clock[r], us: us[r] });
          clock[r] += us[r];
        }
      }
    }
    const waits = Array.from({ length: n }, (_, r) =>
      T.sum(bars.filter((b) => b.rank === r && b.kind === "waiting").map((b) => b.us)),
    );
    return { bars, end: Math.max(...clock), waits };
  };

  // [[what, its shape]] on each rank at a stage of a recorded timeline
  T.shapes = function (t, stage) {
    const config = T.data.family[t.model],
      d = config.n_embd,
      rows = t.phase === "decode" ? t.batch : t.batch * t.prompt_len;
    const local = Math.ceil(config.n_head / t.tp),
      wide = local * (d / config.n_head),
      size = (w) => `(${T.number(rows)}, ${w})`;
    const drawn = t.plan === "as-drawn";
    return {
      T0: [["hidden", size(d)]],
      T1: [
        ["A_r", `(${d}, ${3 * wide})`],
        ["qkv_r = hidden A_r", size(3 * wide)],
      ],
      T2: drawn
        ? [
            ["q, k, v gathered", `each ${size(d)}`],
            ["attention's output, all heads", size(d)],
          ]
        : [
            ["q_r, k_r, v_r", `each ${size(wide)}: ${local} heads of ${d / config.n_head}`],
            ["attention's output", size(wide)],
          ],
      T3: [...(drawn ? [["this rank's slice", size(wide)]] : []), ["A_r", `(${wide}, ${d})`], ["out_r", size(d)]],
      T4: [["sum of out_r", size(d)]],
      T5: [["output", size(d)]],
    }[stage];
  };
})(tpgpt2);
