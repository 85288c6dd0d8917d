// An all-reduce on paper and step by step: explorers/collective.py, the same formulas.
(function (T) {
  // query: {algorithm, world, bytes} -> steps in which data moves, barriers, bytes that leave one rank, messages
  T.collective = function (query) {
    const { algorithm, world, bytes } = query;
    if (!T.data.algorithms.includes(algorithm)) {
      throw new T.UserError(`unknown algorithm '${algorithm}'; known: ${T.data.algorithms.join(", ")}`);
    }
    if (world < 2) throw new T.UserError(`an all-reduce needs at least 2 ranks, not ${world}`);
    if (bytes < 1) throw new T.UserError(`a message has at least 1 byte, not ${bytes}`);
    const peers = world - 1,
      whole = algorithm === "one_shot" || algorithm === "push";
    const steps = { ring: 2 * peers, one_shot: 1, two_shot: 2, push: 1, two_shot_push: 2 }[algorithm];
    return {
      algorithm,
      world,
      bytes,
      steps,
      barriers: { one_shot: 2, two_shot: 3 }[algorithm] || 0,
      bytes_out: whole ? peers * bytes : ((2 * peers) / world) * bytes,
      messages: whole ? peers : 2 * peers,
    };
  };

  // The same call as it runs: [{what, moves: [{from, to, chunk}], after: by rank, by chunk, whose parts it holds}].
  // A chunk is 1/n of the tensor. `after` is a list of rank sets, so that a step can be drawn and its sum be checked.
  T.rounds = function (algorithm, n) {
    const ranks = [...Array(n).keys()],
      held = ranks.map((r) => ranks.map(() => new Set([r])));
    const rounds = [],
      add = (what, moves, barrier = false, keep = true) => {
        const sent = moves.map((m) => ({ ...m, parts: new Set(held[m.from][m.chunk]) }));
        if (keep) sent.forEach((m) => m.parts.forEach((p) => held[m.to][m.chunk].add(p)));
        rounds.push({ what, moves, barrier, after: held.map((row) => row.map((s) => new Set(s))) });
      };
    const others = (r) => ranks.filter((p) => p !== r),
      mod = (x) => ((x % n) + n) % n;
    if (algorithm === "ring") {
      for (let s = 0; s < n - 1; s++) {
        add(
          `reduce-scatter ${s + 1} of ${n - 1}: each rank sends one chunk on, the next adds its own`,
          ranks.map((r) => ({ from: r, to: mod(r + 1), chunk: mod(r - s) })),
        );
      }
      for (let s = 0; s < n - 1; s++) {
        add(
          `all-gather ${s + 1} of ${n - 1}: each rank passes a finished chunk on`,
          ranks.map((r) => ({ from: r, to: mod(r + 1), chunk: mod(r + 1 - s) })),
        );
      }
    } else if (algorithm === "two_shot" || algorithm === "two_shot_push") {
      const reads = algorithm === "two_shot";
      if (reads) add("barrier: my data is there", [], true);
      add(
        reads
          ? "each rank reads its slice of every peer and sums it"
          : "each rank writes every peer its slice; each sums what arrives",
        ranks.flatMap((r) => others(r).map((p) => ({ from: p, to: r, chunk: r }))),
      );
      if (reads) add("barrier: my slice is summed", [], true);
      add(
        reads ? "each rank reads the finished slices" : "each rank writes its finished slice to every peer",
        ranks.flatMap((r) => others(r).map((p) => ({ from: p, to: r, chunk: p }))),
      );
      if (reads) add("barrier: I have read yours", [], true);
    } else {
      const all = ranks.flatMap((r) => others(r).flatMap((p) => ranks.map((chunk) => ({ from: r, to: p, chunk }))));
      if (algorithm === "one_shot") add("barrier: my data is there", [], true);
      add(
        algorithm === "push"
          ? "each rank writes its whole tensor into every peer's memory; each sums what arrives"
          : "each rank reads every peer's whole tensor and sums it",
        all,
      );
      if (algorithm === "one_shot") add("barrier: I have read yours", [], true);
    }
    return rounds;
  };
})(tpgpt2);
