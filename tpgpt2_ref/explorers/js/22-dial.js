// What the cost dial asks: which machine's model, which recorded rows stand beside the answer, and what it is outside of.
(function (T) {
  const slugs = Object.keys(T.data.machines);
  const worldOf = (slug) =>
    Math.max(0, ...T.data.machines[slug].model.filter((r) => r.op === "decode").map((r) => r.world));

  // The machine whose model knows most of so many ranks: as many GPUs, or the most there are; one rank was recorded
  // beside two
  function machineFor(tp) {
    const able = slugs.filter((s) => worldOf(s) >= 2).sort((a, b) => worldOf(a) - worldOf(b));
    return able.find((s) => worldOf(s) >= tp) || able.at(-1);
  }

  function queryOf(state, tp = state.tp, batch = state.batch) {
    const link = state.link,
      path = tp === 1 ? null : link ? `nccl/${link}` : state.path || null,
      one = state.phase === "decode";
    return {
      machine: machineFor(tp),
      gpt2: state.gpt2,
      tp,
      batch,
      tokens: one ? 1 : state.tokens,
      context: one ? state.tokens : 0,
      path,
    };
  }

  function rowsOf(q, rung) {
    const machine = T.data.machines[q.machine],
      decode = q.tokens === 1,
      kind = decode ? "decode" : "prefill";
    const us = decode ? "us_per_step" : "wall_us";
    const rows = machine[kind].rows.filter(
      (r) => r.rung === rung && r.tp === q.tp && (q.tp === 1) === (r.sum === "none"),
    );
    return rows.map((r) => ({
      ...r,
      us: r[`${us}_median`],
      seen: decode ? r.prompt_len + (r.new_tokens || 128) / 2 : r.prompt_len,
    }));
  }

  const matching = (q, rung, state) =>
    fastest(
      rowsOf(q, rung)
        .filter((r) => r.model === q.gpt2 || r.model === `random:${q.gpt2}`)
        .filter((r) => r.seen === (q.tokens === 1 ? q.context : q.tokens)),
      state,
    );

  // Why a prediction is outside what was fitted; empty inside
  T.outside = function (q, answer) {
    if (answer.us === null) return ["not measured"];
    const rows = rowsOf(q, answer.rung),
      paper = answer.on_paper ? ["its collectives are put together on paper"] : [];
    if (!rows.length) return [`no ${answer.phase} with ${T.times(q.tp, "rank")} was recorded`, ...paper];
    const range = (key, value, what) => {
      const values = rows.map((r) => r[key]),
        low = Math.min(...values),
        high = Math.max(...values);
      return value < low || value > high
        ? [`${what} ${T.number(value)}: recorded are ${T.number(low)} to ${T.number(high)}`]
        : [];
    };
    const byPush = T.BY_PUSH.includes(answer.rung); // such steps are fitted with push alone
    const sums = q.path === null || rows.some((r) => r.sum === q.path && (!byPush || r.sum === "push"));
    const models = new Set(rows.map((r) => r.model.replace("random:", "")));
    return [
      ...range("batch", q.batch, "batch"),
      ...range("seen", q.tokens === 1 ? q.context : q.tokens, q.tokens === 1 ? "context" : "prompt"),
      ...(models.has(q.gpt2) ? [] : [`${q.gpt2} was not recorded`]),
      ...(sums ? [] : [`no ${answer.phase} that sums by ${q.path} was fitted`]),
      ...paper,
    ];
  };

  function ask(q, answered = T.step) {
    try {
      const answer = answered(q),
        parts = T.costParts(q),
        { heldout_median_error: typical, heldout_worst_error: band } = parts ? parts.fit : {};
      return { q, answer, parts, outside: T.outside(q, answer), typical, band };
    } catch (e) {
      if (!(e instanceof T.UserError)) throw e;
      return { q, error: e.message, outside: [e.message], answer: { us: null } };
    }
  }

  const sameAsked = (d, q) =>
    d.gpt2 === q.gpt2 && d.batch === q.batch && d.tokens === q.tokens && d.context === q.context;

  // Of the rows recorded at one point those that ran the all-reduce asked for; "the fastest": the fastest of them
  function fastest(rows, state) {
    if (state.link) return rows.filter((r) => r.tp === 1);
    if (state.path) return rows.filter((r) => r.tp === 1 || r.sum === state.path);
    const by = new Map();
    for (const r of rows) if (!by.has(r.batch) || r.us < by.get(r.batch).us) by.set(r.batch, r);
    return [...by.values()];
  }

  T.dial = { queryOf, matching, ask, sameAsked };
})(tpgpt2);
