// A small plot: two axes, straight or logarithmic, and what is drawn on them.
(function (T) {
  const { svg } = T;

  function ticks(axis) {
    if (axis.ticks) return axis.ticks.filter((t) => t >= axis.min && t <= axis.max);
    if (axis.log) {
      const out = [],
        span = Math.log10(axis.max / axis.min),
        every = span > 8 ? 2 : 1;
      for (let p = Math.ceil(Math.log10(axis.min) - 1e-9); 10 ** p <= axis.max * 1.0001; p += every) out.push(10 ** p);
      return out;
    }
    const rough = (axis.max - axis.min) / 4,
      power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough),
      out = [];
    for (let t = Math.ceil(axis.min / step) * step; t <= axis.max + step * 1e-6; t += step) out.push(t);
    return out;
  }

  // spec: {width, height, x, y, label}; an axis: {label, min, max, log, format, ticks} -> {node, layer, x(), y(), ...}
  T.plot = function (spec) {
    const { width, height } = spec,
      left = 52,
      right = 12,
      top = 22,
      bottom = 40;
    const scale = (axis, low, high) => (v) => {
      const part = axis.log
        ? Math.log(v / axis.min) / Math.log(axis.max / axis.min)
        : (v - axis.min) / (axis.max - axis.min);
      return low + part * (high - low);
    };
    const x = scale(spec.x, left, width - right),
      y = scale(spec.y, height - bottom, top);
    const words = (axis, t) => (axis.format || T.number)(t);
    const every = Math.ceil(ticks(spec.x).length / Math.max(2, (width - left) / 62));
    const grid = svg(
      "g",
      { class: "tpx-axis", "aria-hidden": "true" },
      ticks(spec.x).map((t, i) => [
        svg("line", { x1: x(t), x2: x(t), y1: top, y2: height - bottom }),
        i % every === 0 && svg("text", { x: x(t), y: height - bottom + 15, "text-anchor": "middle" }, words(spec.x, t)),
      ]),
      ticks(spec.y).map((t) => [
        svg("line", { x1: left, x2: width - right, y1: y(t), y2: y(t) }),
        svg("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, words(spec.y, t)),
      ]),
      svg("text", { class: "tpx-label", x: width - right, y: height - 6, "text-anchor": "end" }, spec.x.label),
      svg("text", { class: "tpx-label", x: 2, y: 12 }, spec.y.label),
    );
    const id = `tpx-clip-${(T.plot.count = (T.plot.count || 0) + 1)}`;
    const layer = svg("g", { "clip-path": `url(#${id})` });
    const node = T.drawing(
      width,
      height,
      spec.label,
      svg(
        "clipPath",
        { id },
        svg("rect", {
          x: left,
          y: top - 6,
          width: Math.max(0, width - left - right),
          height: Math.max(0, height - top - bottom + 6),
        }),
      ),
      grid,
      layer,
    );
    const path = (points) =>
      points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");
    return {
      node,
      layer,
      x,
      y,
      left,
      right,
      top,
      bottom,
      line: (points, attributes) => layer.append(svg("path", { d: path(points), fill: "none", ...attributes })),
      area: (low, high, attributes) =>
        layer.append(
          svg("path", { stroke: "none", ...attributes, d: `${path(high)}L${path([...low].reverse()).slice(1)}Z` }),
        ),
      dot: (a, b, attributes, title) => {
        const dot = svg("circle", { cx: x(a), cy: y(b), r: 4, ...attributes }, title && svg("title", {}, title));
        layer.append(dot);
        return dot;
      },
      text: (a, b, words, attributes) => layer.append(svg("text", { x: x(a), y: y(b), ...attributes }, words)),
    };
  };
})(tpgpt2);
