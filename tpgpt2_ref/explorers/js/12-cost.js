// What a forward costs, as `cost forward --json` answers it: cost/forward.py over cost/collectives.py.
(function (T) {
  const TERMS = ["alpha_us", "us_per_layer", "beta_us_per_byte", "us_per_kv_byte", "us_per_kv_byte_few", "us_per_flop"];
  const BY_PUSH = (T.BY_PUSH = ["+sum", "+pdl"]),
    KEY = 8;
  const inner = (config) => config.n_inner || 4 * config.n_embd;
  const headSize = (config) => config.n_embd / config.n_head;
  const localVocab = (config, tp) => T.padded(config.vocab_size, T.data.multiples.vocab * tp) / tp;

  // Microseconds of one call: by the piece that holds the size, or on the line between two pieces
  T.evaluate = function (pieces, nbytes) {
    const at = (piece, n) => piece.alpha_us + piece.beta_us_per_byte * n;
    const below = pieces.filter((p) => p.from_bytes <= nbytes),
      above = pieces.filter((p) => p.from_bytes > nbytes);
    const left = T.least(below, (p) => -p.from_bytes) || pieces[0],
      right = T.least(above, (p) => p.from_bytes) || left;
    const low = "until_bytes" in left ? left.until_bytes : right.from_bytes,
      high = right.from_bytes;
    if (!(low < nbytes && nbytes < high)) return at(left, nbytes);
    return at(left, low) + ((at(right, high) - at(left, low)) * (nbytes - low)) / (high - low);
  };

  function ringScale(op, measured, world) {
    const steps = (world - 1) / (measured - 1),
      share = (steps * measured) / world;
    return [steps, { all_reduce: share, reduce_scatter: share, all_gather: steps, broadcast: 1 }[op]];
  }

  const indexed = new WeakMap(); // of a model: "op graph" -> its rows

  function rowsOf(model, op, graph) {
    if (!indexed.has(model)) {
      const index = {};
      for (const r of model) (index[`${r.op} ${r.graph}`] ||= []).push(r);
      indexed.set(model, index);
    }
    return indexed.get(model)[`${op} ${graph}`] || [];
  }

  // What one collective costs, by the fastest path of the model or by the one named
  T.predict = function (model, op, nbytes, world, path = null, graph = false) {
    let rows = rowsOf(model, op, graph);
    if (path !== null) rows = rows.filter((r) => r.path === path);
    if (path === null) {
      rows = rows.filter((r) => !r.path.startsWith("bare "));
      const own = rows.filter((r) => !r.path.includes("/"));
      rows = own.length ? own : rows;
    }
    if (!rows.length) {
      const inGraph = (yes) => (yes ? " in a graph" : "");
      const known = [
        ...new Set(
          model
            .filter((r) => "to_bytes" in r && !r.path.startsWith("bare "))
            .map((r) => `${r.op} over ${r.path}${inGraph(r.graph)}`),
        ),
      ].sort();
      throw new T.UserError(
        `the model has no ${op}${path ? ` over ${path}` : ""}${inGraph(graph)}; it has ` +
          (known.join(", ") || "no collective: fit it with a collectives.json too"),
      );
    }
    const worlds = rows.map((r) => r.world),
      smaller = worlds.filter((w) => w <= world);
    const measured = smaller.length ? Math.max(...smaller) : Math.min(...worlds);
    const [latency, bandwidth] = ringScale(op, measured, world);
    const byPath = new Map();
    for (const r of rows.filter((r) => r.world === measured)) byPath.set(r.path, [...(byPath.get(r.path) || []), r]);
    const scale = (p) => ({
      from_bytes: p.from_bytes,
      ...("until_bytes" in p && { until_bytes: p.until_bytes }),
      alpha_us: p.alpha_us * latency,
      beta_us_per_byte: p.beta_us_per_byte * bandwidth,
    });
    const [us, name, first] = T.least(
      [...byPath].map(([name, pieces]) => [T.evaluate(pieces.map(scale), nbytes), name, pieces[0]]),
      ([us]) => us,
    );
    const heldout = Object.fromEntries(Object.entries(first).filter(([k]) => k.startsWith("heldout")));
    return {
      us,
      path: name,
      op,
      bytes: nbytes,
      world,
      graph,
      measured_world: measured,
      on_paper: measured !== world,
      beyond_measured_sizes: !(first.from_bytes <= nbytes && nbytes <= first.to_bytes),
      ...heldout,
    };
  };

  // [[op, bytes of a rank's input, how often]] of one forward
  T.collectivesOf = function (config, tp, batch, tokens, plan = "shipped", itemsize = 2, rung = null) {
    if (tp === 1) return [];
    const t = batch * tokens,
      heads = Math.ceil(config.n_head / tp),
      short = rung === "fused" ? 2 : 0;
    const all = [null, "eager", "graph", "fused"].includes(rung);
    const out = [["all_reduce", t * config.n_embd * itemsize, 2 * config.n_layer + 1 - short]];
    if (short) out.push(["all_reduce", batch * config.n_embd * itemsize, short]);
    out.push(["all_gather", batch * (all ? localVocab(config, tp) * itemsize : KEY), 1]);
    if (plan === "as-drawn") out.push(["all_gather", t * heads * headSize(config) * itemsize, 3 * config.n_layer]);
    return out;
  };

  // Whether the kernel for few sequences reads the cache: the tile of the nearest measured in sequences times heads
  function readsByFew(batch, heads) {
    const far = ([b, ranks, width]) => [
      Number(Math.abs(Math.log((batch * heads * ranks * 64) / (b * width))).toFixed(9)),
      Math.abs(Math.log(batch / b)),
    ];
    return T.least(T.data.attention_tiles, far)[3];
  }

  // What TERMS multiply: one rank's (1, layers, bytes of weights, of cache, of cache read by `few`, flops)
  T.work = function (config, tp, batch, tokens, context, itemsize = 2) {
    const d = config.n_embd,
      heads = Math.ceil(config.n_head / tp),
      width = heads * headSize(config);
    const mlp = T.padded(inner(config), T.data.multiples.inner * tp) / tp;
    const block = d * 3 * width + width * d + 2 * d * mlp,
      head = localVocab(config, tp) * d;
    const t = batch * tokens,
      seen = context + (tokens + 1) / 2;
    const cache = 2 * config.n_layer * batch * (context + tokens) * width * itemsize;
    const flops = 2 * t * block * config.n_layer + 2 * batch * head + 4 * t * seen * width * config.n_layer;
    const few = tokens === 1 && readsByFew(batch, heads) ? cache : 0;
    return [1, config.n_layer, (block * config.n_layer + head) * itemsize, cache - few, few, flops];
  };

  const pathOf = (model, op, path) =>
    path === null || model.some((r) => r.op === op && r.path === path)
      ? path
      : ["nccl", ...path.split("/").slice(1)].join("/");

  const others = new WeakMap();

  function withoutPush(model) {
    if (!others.has(model))
      others.set(
        model,
        model.filter((r) => !(r.op === "all_gather" && r.path === "push")),
      );
    return others.get(model);
  }

  function communication(model, calls, tp, path, graph, rung) {
    if (!BY_PUSH.includes(rung)) model = withoutPush(model);
    const found = calls.map(([op, nbytes]) => T.predict(model, op, nbytes, tp, pathOf(model, op, path), graph));
    return [T.sum(found.map((f, i) => f.us * calls[i][2])), found];
  }

  function rungsOf(model, phase, tp, batch, rung) {
    const from = (r) => ("from_batch" in r ? r.from_batch : 1);
    const fits = model.filter((r) => r.op === phase && from(r) <= batch && (rung === null || r.path === rung));
    fits.sort((a, b) => from(a) - from(b));
    const rungs = new Map();
    for (const r of fits) if (tp === 1 || r.world > 1) rungs.set(r.path, r);
    if (rung && !rungs.size) {
      const known = [...new Set(model.filter((r) => r.op === phase).map((r) => r.path))].sort();
      throw new T.UserError(
        fits.length
          ? `the model has ${phase} of rung '${rung}' with one rank alone`
          : `the model has no ${phase} of rung '${rung}'; it has ${known.join(", ") || "none"}`,
      );
    }
    return [...rungs.values()];
  }

  const coefficients = (fit) => TERMS.map((term) => (term in fit ? fit[term] : fit.us_per_kv_byte));
  const dot = (a, b) => T.sum(a.map((x, i) => x * b[i]));

  // The fit that `forward` goes by, or undefined
  T.fitOf = function (model, config, tp, batch, tokens, context, rung, itemsize = 2) {
    const candidates = rungsOf(model, tokens === 1 ? "decode" : "prefill", tp, batch, rung);
    const models = (r) => ("models" in r ? r.models : 1),
      widest = Math.max(1, ...candidates.map(models));
    const features = T.work(config, tp, batch, tokens, context, itemsize);
    return T.least(
      candidates.filter((r) => models(r) === widest),
      (r) => dot(coefficients(r), features),
    );
  };

  function forward(model, config, q) {
    const { tp, batch, tokens, context, rung, path, plan } = q,
      features = T.work(config, tp, batch, tokens, context);
    const fit = T.fitOf(model, config, tp, batch, tokens, context, rung);
    const graph = fit ? fit.graph : model.some((r) => r.op === "all_reduce" && r.graph);
    const calls = T.collectivesOf(config, tp, batch, tokens, plan, 2, fit ? fit.path : null);
    const [comm, found] = communication(model, calls, tp, path, graph, fit ? fit.path : null);
    const compute = fit ? dot(coefficients(fit), features) : null,
      counts = {};
    for (const [op, , times] of calls) counts[op] = (counts[op] || 0) + times;
    return {
      us: fit ? compute + comm : null,
      compute_us: compute,
      communication_us: comm,
      communication_share: fit ? comm / (compute + comm) : null,
      phase: tokens === 1 ? "decode" : "prefill",
      rung: fit ? fit.path : null,
      graph,
      tp,
      batch,
      tokens,
      context,
      plan,
      collectives: counts,
      bytes_a_rank: T.sum(calls.map(([, nbytes, times]) => nbytes * times)),
      paths: Object.fromEntries(found.map((f) => [f.op, f.path])),
      on_paper: found.some((f) => f.on_paper),
    };
  }

  function crossover(model, config, q) {
    for (let batch = 1; batch <= 4096; batch *= 2) {
      const [one, many] = [1, q.tp].map((tp) => forward(model, config, { ...q, tp, batch }).us);
      if (one !== null && many !== null && many < one) return batch;
    }
    return null;
  }

  function checked(query) {
    const q = { context: 0, rung: null, path: null, plan: "shipped", ...query },
      config = T.data.family[q.gpt2];
    for (const name of ["tp", "batch", "tokens"]) {
      if (q[name] < 1) throw new T.UserError(`--${name} must be at least 1, not ${q[name]}`);
    }
    if (q.context < 0) throw new T.UserError(`--context must be at least 0, not ${q.context}`);
    if (q.context + q.tokens > config.n_positions) {
      throw new T.UserError(
        `${q.gpt2} has ${config.n_positions} positions: --context ${q.context} and --tokens ` + `${q.tokens} are more`,
      );
    }
    return [q, config];
  }

  // `cost` without where more ranks pay, which takes 26 forwards
  T.step = function (query) {
    const [q, config] = checked(query),
      { model, label } = T.data.machines[q.machine];
    return { what: "forward", ...forward(model, config, q), machine: label };
  };

  // query: {machine, gpt2, tp, batch, tokens, context, rung, path, plan} -> what the command says
  T.cost = function (query) {
    const answer = T.step(query),
      [q, config] = checked(query),
      { model } = T.data.machines[q.machine];
    if (q.tp > 1 && answer.us !== null) answer.crossover_batch = crossover(model, config, q);
    return answer;
  };

  // The parts of `cost(query).us`, which add up to it: fixed and by layer are launches, the rest is what is moved
  T.costParts = function (query) {
    const [q, config] = checked(query),
      { model } = T.data.machines[q.machine],
      answer = T.step(q);
    const fit = T.fitOf(model, config, q.tp, q.batch, q.tokens, q.context, q.rung);
    if (!fit) return null;
    const [fixed, layers, weights, cache, few, flops] = T.work(config, q.tp, q.batch, q.tokens, q.context).map(
      (f, i) => f * coefficients(fit)[i],
    );
    return { weights, cache: cache + few, kernels: fixed + layers + flops, collectives: answer.communication_us, fit };
  };
})(tpgpt2);
