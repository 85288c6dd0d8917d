// The selector as a machine to play with: Diagram 1's path, box by box, and what vLLM decides in the same place.
tpgpt2.explorers.selector = function (root, initial) {
  const T = tpgpt2,
    { h } = T,
    { gpus, matrix, order, packages, aliases } = T.data;

  const box = (kind, name, words) =>
    h(
      "li",
      { class: `tpx-box ${kind}` },
      h("span", { class: "tpx-name" }, name),
      words && h("span", { class: "tpx-why" }, words),
    );

  function query(state) {
    const { gpu, installed: checked, version, ...rest } = state,
      installed = checked.filter((p) => p in packages);
    return {
      ...gpus[gpu],
      ...rest,
      installed: installed.length ? installed.join(",") : "none",
      environment: state.environment || null,
      force: state.force || null,
    };
  }

  function path(q) {
    let answer, error;
    try {
      answer = T.select(q);
    } catch (e) {
      if (!(e instanceof T.UserError)) throw e;
      error = e.message;
    }
    const named = q.force || q.environment,
      platform = T.platform(q);
    const boxes = [
      box(q.force ? "lit" : "passed", "Priority 1: force override", q.force ? `names ${q.force}` : "None: go on"),
      !q.force &&
        box(
          q.environment ? "lit" : "passed",
          "Priority 2: VLLM_ATTENTION_BACKEND",
          q.environment ? `names ${q.environment}` : "not set: go on",
        ),
      !named && box("lit", "Priority 3: the platform", T.platformName(platform)),
    ];
    const asked = error
      ? []
      : !named
        ? order[platform.kind]
        : answer
          ? [...Object.keys(answer.rejected), answer.backend]
          : [];
    if (!named) {
      const until = answer ? asked.indexOf(answer.backend) : asked.length;
      asked.forEach((name, i) => {
        if (i < until) boxes.push(box("refused", name, answer.rejected[name].join("; ")));
        else if (i === until) boxes.push(box("chosen", name, "runs"));
        else boxes.push(box("unasked", name, "not asked"));
      });
    } else if (answer) boxes.push(box("chosen", answer.backend, "runs"));
    if (error) boxes.push(box("refused", named || "Refused", error));
    return { boxes, answer, error };
  }

  function column(title, made, note) {
    return h(
      "section",
      { class: "tpx-column" },
      h("h4", {}, title),
      note && h("p", { class: "tpx-caption" }, note),
      h("ol", { class: "tpx-path" }, made),
    );
  }

  // That vLLM's path: whose word it was, what was asked and refused, what runs, what would come later
  function theirs(version, state) {
    const { platform, capability } = gpus[state.gpu],
      { vllm } = T.data;
    const said = T.select_as(version, {
      platform,
      capability: capability ? Math.round(10 * Number(capability)) : null,
      head_size: state.head_size,
      dtype: state.dtype,
      cache_dtype: state.cache_dtype,
      block_size: state.block_size,
      program: state.force || null,
      env: state.environment || null,
      installed: state.installed.filter((name) => vllm.packages.includes(name)),
    });
    const { backend, flash_version: flash, by, at, rejected, lower, notes, error } = said;
    const name = backend && flash ? `${backend} (FlashAttention ${flash})` : backend;
    const made = [
      box(
        "lit",
        {
          platform: "The platform decides",
          force: "The program decides",
          environment: "VLLM_ATTENTION_BACKEND decides",
        }[by] || `Named in the ${by}`,
        at && `as ${at} says`,
      ),
      notes.map((note) => box("passed", "Note", note)),
      Object.entries(rejected).map(([n, why]) => box("refused", n, why.join("; "))),
      backend && box("chosen", name, error ? `chosen, and then: ${error}` : "runs"),
      !backend && box("refused", "Refused", error),
      lower.map((n) => box("unasked", n, "could run too, comes later")),
    ];
    return { version, name, error, made };
  }

  function draw(state) {
    const q = query(state),
      ours = path(q),
      all = Object.keys(T.data.vllm.versions);
    const versions = [...new Set([state.version, all.at(-1)])].map((v) => theirs(v, state));
    const refused = ours.answer
      ? Object.entries(ours.answer.rejected).filter(([, why]) => !why[0].startsWith("comes after"))
      : [];
    const name = (n) => h("strong", {}, n);
    return {
      figure: h(
        "div",
        { class: "tpx-columns" },
        column("This book", ours.boxes),
        versions.map((v) => column(`vLLM ${v.version}`, v.made)),
      ),
      answer: [
        h(
          "p",
          {},
          ours.answer
            ? ["This book: ", name(ours.answer.backend), ` — ${ours.answer.why}.`]
            : [h("strong", { class: "tpx-is-wrong" }, "Nothing runs. "), ours.error],
        ),
        versions.map((v) =>
          h(
            "p",
            {},
            `vLLM ${v.version}: `,
            v.name ? name(v.name) : h("strong", { class: "tpx-is-wrong" }, "refuses"),
            v.error ? ` — ${v.error}.` : ".",
          ),
        ),
        ours.answer &&
          refused.length > 0 &&
          h(
            "details",
            {},
            h("summary", {}, `${refused.length} of the others can't run here`),
            h(
              "ul",
              {},
              refused.map(([n, why]) => h("li", {}, name(n), `: ${why.join("; ")}`)),
            ),
          ),
      ],
    };
  }

  const every = [...new Set([...Object.keys(packages), ...T.data.vllm.packages])];
  const names = ["FLASH_ATTN", ...matrix.map((r) => r.name), ...Object.keys(aliases)];
  return T.panel(
    root,
    {
      title: "Selector: which kernel runs, and why not the others?",
      draw,
      answerFirst: true,
      controls: [
        {
          key: "gpu",
          kind: "choice",
          label: "GPU",
          options: Object.keys(gpus).map((g) => [
            g,
            gpus[g].capability ? `${g} (SM ${gpus[g].capability.replace(".", "")})` : g,
          ]),
        },
        { key: "dtype", kind: "choice", label: "dtype", options: T.data.dtypes.map((d) => [d, d]) },
        {
          key: "head_size",
          kind: "choice",
          label: "Head size",
          options: [32, 64, 80, 96, 128, 160, 192, 224, 256, 512].map((n) => [n, String(n)]),
        },
        {
          key: "cache_dtype",
          kind: "choice",
          label: "KV cache",
          options: [
            ["auto", "auto (the model's)"],
            ...T.data.vllm.cache_dtypes.filter((c) => c !== "auto").map((c) => [c, c]),
          ],
        },
        {
          key: "block_size",
          kind: "choice",
          label: "Tokens a page",
          options: [1, 8, 16, 32, 64].map((n) => [n, String(n)]),
        },
        {
          key: "environment",
          kind: "choice",
          label: "VLLM_ATTENTION_BACKEND",
          options: [["", "not set"], ...names.map((n) => [n, n])],
        },
        { key: "force", kind: "choice", label: "Force override", options: [["", "None"], ...names.map((n) => [n, n])] },
        {
          key: "version",
          kind: "choice",
          label: "Beside vLLM",
          options: Object.keys(T.data.vllm.versions).map((v) => [v, v]),
        },
        { key: "installed", kind: "checks", label: "Installed packages", options: every.map((p) => [p, p]) },
      ],
    },
    {
      gpu: "H100, H200",
      dtype: "float16",
      head_size: 64,
      cache_dtype: "auto",
      block_size: 16,
      environment: "",
      force: "",
      installed: every,
      version: Object.keys(T.data.vllm.versions)[0],
      ...initial,
    },
  );
};
