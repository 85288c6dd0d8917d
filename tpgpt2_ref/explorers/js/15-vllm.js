// What vLLM itself chooses, as `select --as` answers it: attention/vllm_rules.py over the facts of vllm_rules.toml.
(function (T) {
  const text = (value) => (value === null ? "None" : String(value));
  const filled = (template, values) => template.replace(/\{(\w+)\}/g, (_, name) => text(values[name]));

  function within(spec, value) {
    if (Array.isArray(spec)) return spec.includes(value);
    const { min = 0, max = value, step = 1 } = spec;
    return min <= value && value <= max && value % step === 0;
  }

  const TESTS = {
    heads: (spec, q) => within(spec, q.head_size),
    block: (spec, q) => q.block_size === null || within(spec, q.block_size),
    dtypes: (names, q) => names.includes(q.dtype),
    cache: (names, q) => names.includes(q.cache_dtype),
    sm: (spans, q) => spans.some(([low, high]) => low <= (q.capability || -1) && (q.capability || -1) <= high),
    package: (name, q) => q.installed.includes(name),
  };

  const holds = (condition, q) => Object.entries(condition).every(([part, wanted]) => TESTS[part](wanted, q));
  const unmet = (checks, q) =>
    checks.filter(([, , ...ways]) => !ways.some((way) => holds(way, q))).map(([reason]) => filled(reason, q));

  function whyNot(backend, q, checked) {
    if (backend.package && !q.installed.includes(backend.package)) return [`ImportError: ${backend.package}`];
    return checked ? unmet(backend.checks, q) : [];
  }

  function built(source, q, answer) {
    const late = unmet(source.backends[answer.backend].late, q);
    if (answer.backend === "FLASH_ATTN") {
      const step = source.flash_version.find((s) => holds(s.when, q));
      answer.flash_version = step ? step.version : null;
    }
    return { ...answer, error: late.length ? late[0] : null };
  }

  // query: fields of `vllm_rules.DEFAULTS` -> the choice of that vLLM, its reasons, and where its source says so
  T.select_as = function (version, query) {
    const { versions, defaults, cache_dtypes: caches } = T.data.vllm,
      known = Object.keys(versions);
    if (!known.includes(version)) {
      throw new T.UserError(`no rules of vLLM '${version}'; there are those of ${known.join(", ")}`);
    }
    const unknown = Object.keys(query)
      .filter((name) => !(name in defaults))
      .sort();
    if (unknown.length) {
      throw new T.UserError(`a query has no '${unknown[0]}'; it has ${Object.keys(defaults).join(", ")}`);
    }
    const source = versions[version],
      q = { ...defaults, ...query };
    if (!(q.platform in source.platforms)) {
      throw new T.UserError(`unknown platform '${q.platform}'; known: ${Object.keys(source.platforms).join(", ")}`);
    }
    if (!caches.includes(q.cache_dtype)) {
      throw new T.UserError(`unknown cache dtype '${q.cache_dtype}'; known: ${caches.join(", ")}`);
    }
    if (q.installed === null) q.installed = source.requires;
    const platform = source.platforms[q.platform];
    if (q.platform !== "cuda") q.capability = null;
    const notes = (source.gone || []).filter((gone) => q[gone.key]).map((gone) => gone.note);
    const answer = {
      version,
      backend: null,
      flash_version: null,
      by: "platform",
      at: null,
      rejected: {},
      lower: [],
      notes,
      error: null,
    };
    const refused = unmet(platform.refuses, q);
    if (refused.length) return { ...answer, error: refused[0], at: platform.refuses[0][1] };
    const asked = source.asked.find((step) => q[step.key]);
    if (asked) {
      const name = q[asked.key],
        named = platform.named;
      Object.assign(answer, { by: asked.by, at: named.at });
      if (!source.names.includes(name)) return { ...answer, error: filled(source.unknown, { name }), at: asked.at };
      if (named.take.includes(name)) {
        const reasons = whyNot(source.backends[name], q, named.checked);
        if (reasons.length) {
          return {
            ...answer,
            rejected: { [name]: reasons },
            error: filled(named.error || "{name}: {reasons}", { name, reasons: reasons.join(", ") }),
          };
        }
        return built(source, q, { ...answer, backend: name });
      }
      if (named.otherwise !== "ignored") return { ...answer, error: filled(named.otherwise, { name }) };
      notes.push(`${name} is ignored: the platform decides`);
    }
    for (const step of platform.order) {
      const name = step.backend;
      let reasons;
      if (holds(step.when || {}, q)) reasons = whyNot(source.backends[name], q, !step.unchecked);
      else if ("only" in step) reasons = [step.only];
      else continue;
      if (answer.backend) {
        if (!reasons.length) answer.lower.push(name);
      } else if (reasons.length) answer.rejected[name] ||= reasons;
      else {
        Object.assign(answer, { backend: name, by: "platform", at: step.at });
        if (source.stops_at_first) break;
      }
    }
    if (answer.backend === null) {
      const told = Object.entries(answer.rejected)
        .map(([name, reasons]) => `${name}: ${reasons.join(", ")}`)
        .join("; ");
      return { ...answer, error: `No valid attention backend found. Reasons: ${told}` };
    }
    delete answer.rejected[answer.backend];
    return built(source, q, answer);
  };
})(tpgpt2);
