// Diagram 1 as `select --json` answers it: attention/selector.py over the rows of attention/matrix.py.
(function (T) {
  const dotted = (pair) => `${pair[0]}.${pair[1]}`;
  const notAfter = (a, b) => !T.before(b, a);

  function version(text) {
    if (!/^[0-9]{1,3}(\.[0-9]{1,3}){0,2}$/.test(text)) {
      throw new T.UserError(`'${text}' is no version: write it as 9.0 or 12.4`);
    }
    const parts = text.split(".");
    return [Number(parts[0]), parts.length > 1 ? Number(parts[1]) : 0];
  }

  function packages(text) {
    const known = Object.keys(T.data.packages);
    if (text === "all") return known;
    let names = text.split(",").map((n) => n.trim().replaceAll("_", "-"));
    names = names.filter((n) => !["", "none", "torch"].includes(n));
    names = names.map((n) => (n === "flash-attn-interface" ? "flash-attn-3" : n));
    const unknown = [...new Set(names.filter((n) => !known.includes(n)))].sort();
    if (unknown.length) {
      throw new T.UserError(`unknown package ${unknown.join(", ")}; known: all, none, ${known.join(", ")}`);
    }
    return names;
  }

  // The machine of a query: {kind, capability, cuda_version, installed}
  T.platform = function (query) {
    const kind = query.platform || "cuda",
      cuda = kind === "cuda";
    const capability = cuda || query.capability ? version(query.capability || "9.0") : null;
    const cudaVersion = cuda || query.cuda_version ? version(query.cuda_version || "12.4") : null;
    const installed = packages(query.installed || "all");
    if (!T.data.kinds.includes(kind)) {
      throw new T.UserError(`unknown platform '${kind}'; known: ${T.data.kinds.join(", ")}`);
    }
    if (!cuda && (capability || cudaVersion)) {
      throw new T.UserError(`compute capability and CUDA version belong to cuda, not to ${kind}`);
    }
    return { kind, capability, cuda_version: cudaVersion, installed };
  };

  T.platformName = (p) => (p.capability ? `cuda SM ${dotted(p.capability)}, CUDA ${dotted(p.cuda_version)}` : p.kind);

  function takesHead(sizes, head) {
    if (sizes === null) return true;
    if (Array.isArray(sizes)) return sizes.includes(head);
    return head >= sizes.first && head <= sizes.last && (head - sizes.first) % sizes.step === 0;
  }

  function listed(sizes) {
    return Array.isArray(sizes) ? sizes.join(", ") : `multiples of ${sizes.step} from ${sizes.first} to ${sizes.last}`;
  }

  // Why a row of the matrix can't run there; empty if it can
  function reasons(row, platform, q) {
    if (!row.platforms.includes(platform.kind)) {
      return [`runs on ${row.platforms.join(" and ")}, this is ${platform.kind}`];
    }
    const found = [];
    if (!takesHead(row.head_sizes, q.head_size)) {
      found.push(`head size ${q.head_size}: takes ${listed(row.head_sizes)}`);
    }
    if (!row.dtypes.includes(q.dtype)) found.push(`dtype ${q.dtype}: takes ${row.dtypes.join(" and ")}`);
    if (platform.kind === "cuda" && row.capabilities) {
      const [least, most] = row.capabilities;
      if (!(notAfter(least, platform.capability) && notAfter(platform.capability, most))) {
        const open = most[0] === 99; // ANY_SM
        const to = open ? " and newer" : T.before(least, most) ? ` to ${dotted(most)}` : "";
        found.push(`compute capability ${dotted(platform.capability)}: needs SM ${dotted(least)}${to}`);
      }
    }
    if (
      platform.kind === "cuda" &&
      q.dtype === "bfloat16" &&
      row.bfloat16_from &&
      T.before(platform.capability, row.bfloat16_from)
    ) {
      found.push(
        `bfloat16 on compute capability ${dotted(platform.capability)}: needs SM ${dotted(row.bfloat16_from)}`,
      );
    }
    if (platform.kind === "cuda" && row.cuda_version && T.before(platform.cuda_version, row.cuda_version)) {
      found.push(`CUDA ${dotted(platform.cuda_version)}: needs ${dotted(row.cuda_version)} or newer`);
    }
    if (q.block_size % row.block_step) {
      found.push(`pages of ${q.block_size} tokens: takes multiples of ${row.block_step}`);
    }
    if (!row.cache_dtypes.includes(q.cache_dtype)) {
      found.push(`KV cache in ${q.cache_dtype}: takes ${row.cache_dtypes.join(" and ")}`);
    }
    if (!row.implemented) found.push("this package has no implementation of it");
    if (!found.length && !row.packages.includes("torch") && !row.packages.some((p) => platform.installed.includes(p))) {
      found.push(`package ${row.packages.join(" or ")} is not installed: ${row.install}`);
    }
    return found;
  }

  function expand(asked) {
    const { aliases, flash_attn: flash, matrix } = T.data;
    const name = aliases[asked] || asked;
    if (name === "FLASH_ATTN") return flash;
    if (!matrix.some((row) => row.name === name)) {
      const known = [...matrix.map((row) => row.name), ...Object.keys(aliases)].join(", ");
      throw new T.UserError(`unknown attention backend '${name}'; known: FLASH_ATTN, ${known}`);
    }
    return [name];
  }

  // query: {platform, capability, cuda_version, installed, head_size, dtype, block_size, cache_dtype, num_heads, force,
  // environment}, each as the command line takes it -> {backend, why, rejected, source}
  T.select = function (query) {
    const q = { head_size: 64, dtype: "float16", block_size: 16, cache_dtype: "auto", num_heads: 12, ...query };
    if (q.cache_dtype === "fp8") q.cache_dtype = "fp8_e4m3"; // as in vLLM
    const platform = T.platform(q),
      { matrix, order, dtypes } = T.data;
    if (!dtypes.includes(q.dtype)) {
      throw new T.UserError(`unknown dtype '${q.dtype}'; known: ${dtypes.join(", ")}`);
    }
    for (const [what, value] of [
      ["number of heads", q.num_heads],
      ["head size", q.head_size],
      ["block size", q.block_size],
    ]) {
      if (value < 1) throw new T.UserError(`the ${what} must be at least 1, not ${value}`);
    }
    if (!T.data.cache_dtypes.includes(q.cache_dtype)) {
      throw new T.UserError(`unknown KV cache dtype '${q.cache_dtype}'; known: ${T.data.cache_dtypes.join(", ")}`);
    }
    const asked = q.force || q.environment || null;
    const word = q.force ? `the program names ${asked}` : `VLLM_ATTENTION_BACKEND names ${asked}`;
    const names = asked ? expand(asked) : order[platform.kind];
    const row = Object.fromEntries(matrix.map((r) => [r.name, r]));
    const rejected = {};
    let chosen = null;
    for (const name of names) {
      rejected[name] = reasons(row[name], platform, q);
      if (!rejected[name].length) {
        chosen = name;
        break;
      }
    }
    const where = T.platformName(platform);
    if (chosen === null) {
      const told = names.map((name) => `${name}: ${rejected[name].join(", ")}`).join("; ");
      throw new T.UserError(`${word}, which can't run on ${where}. ${told}`);
    }
    const layer = `${q.num_heads} heads of ${q.head_size} in ${q.dtype}, pages of ${q.block_size}, on ${where}`;
    const answer = {
      backend: chosen,
      rejected: {},
      source: q.force ? "force" : asked ? "environment" : "platform",
      why: asked ? `${word}, which runs ${layer}` : `the first on ${platform.kind} that runs ${layer}`,
    };
    const passedOver = asked ? word : `comes after ${chosen} on ${platform.kind}`;
    for (const { name } of matrix) {
      if (name === chosen) continue;
      const why = name in rejected ? rejected[name] : reasons(row[name], platform, q);
      answer.rejected[name] = why.length ? why : [passedOver];
    }
    return answer;
  };
})(tpgpt2);
