// The figures of a study. `look` of a method is the same in all of them.
const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)}\u00a0%`;
// For an axis: as many digits as all of its ticks need.
const percentOf = (ticks) => (value) => percent(value, ticks.every((tick) => Math.abs(100 * tick - Math.round(100 * tick)) < 1e-6) ? 0 : 1);

// Accuracy against confidence, the gap hatched; below, how many answers of each confidence were right and wrong.
function reliability(name, bins, { width, few, tallest }) {
  const [height, middle] = [362, 215];
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const total = bins.reduce((sum, bin) => sum + bin.count, 0);
  const share = (value) => percent(value);
  const filled = bins.filter((bin) => bin.count);
  const words = filled.map((bin) => `confidence ${percent(bin.confidence)}: ${percent(bin.accuracy)} right`).join("; ");
  const { svg, X, Y } = axes({
    width, height, bottom: height - middle, label: `Reliability diagram of ${name}. ${words}`,
    x: { low: 0, high: 1, ticks: [], show: share, name: "" }, y: { low: 0, high: 1, ticks, show: share, name: "share right" },
  });
  const [zero, room] = [294, 50];
  const tall = (answers) => (answers / total / tallest) * room;
  const targets = [];
  for (const bin of filled) {
    const [from, to, pale] = [X(bin.lower), X(bin.upper), bin.count < few ? 0.35 : 1];
    const [low, high] = [Math.min(bin.accuracy, bin.confidence), Math.max(bin.accuracy, bin.confidence)];
    const box = { x: from, width: to - from, opacity: pale };
    svg.append(el("rect", { ...box, y: Y(bin.accuracy), height: Y(0) - Y(bin.accuracy), class: "right" }));
    svg.append(el("rect", { ...box, y: Y(high), height: Y(low) - Y(high), class: "gap" }));
    svg.append(el("line", { x1: from, x2: to, y1: Y(bin.accuracy), y2: Y(bin.accuracy), class: "level", opacity: pale }));
    svg.append(el("rect", { x: from, width: to - from, y: zero - tall(bin.right), height: tall(bin.right), class: "right" }));
    svg.append(el("rect", { x: from, width: to - from, y: zero, height: tall(bin.wrong), class: "wrong" }));
    targets.push({
      x: (from + to) / 2, y: Y(bin.accuracy), across: true,
      text: `Confidence ${percent(bin.lower)} to ${percent(bin.upper)} (mean ${percent(bin.confidence, 1)}): ${percent(bin.accuracy, 1)} right; ` +
        `${bin.right} right and ${bin.wrong} wrong of ${total} answers.`,
    });
  }
  svg.append(el("line", { x1: X(0), y1: Y(0), x2: X(1), y2: Y(1), class: "ideal" }));
  svg.append(el("line", { x1: X(0), x2: X(1), y1: zero, y2: zero, class: "axis" }));
  svg.append(el("line", { x1: X(0), x2: X(1), y1: zero - room, y2: zero - room, class: "grid" }));
  svg.append(el("text", { class: "tick", x: X(0) - 7, y: zero - room + 4, "text-anchor": "end" }, percent(tallest)));
  svg.append(el("text", { class: "tick", x: X(0) - 7, y: zero - 12, "text-anchor": "end" }, "right"));
  svg.append(el("text", { class: "tick", x: X(0) - 7, y: zero + 20, "text-anchor": "end" }, "wrong"));
  for (const tick of ticks) svg.append(el("text", { class: "tick", x: X(tick), y: middle + 15, "text-anchor": "middle" }, percent(tick)));
  svg.append(el("text", { class: "name", x: (X(0) + X(1)) / 2, y: height - 4, "text-anchor": "middle" }, "confidence"));
  return figure(name, svg, targets);
}

// Of each method the share of right answers (filled) and the mean confidence that it states (hollow).
function sureness(bins, methods, lookOf, width) {
  const facts = methods.map((method) => {
    const filled = bins[method].filter((bin) => bin.count);
    const mean = (part) => filled.reduce((sum, bin) => sum + part(bin), 0) / filled.reduce((sum, bin) => sum + bin.count, 0);
    return { method, right: mean((bin) => bin.right), sure: mean((bin) => bin.count * bin.confidence) };
  });
  const ends = facts.flatMap((fact) => [fact.right, fact.sure]);
  const [low, high] = [Math.floor(20 * Math.min(...ends) - 0.4) / 20, Math.min(1, Math.ceil(20 * Math.max(...ends) + 0.4) / 20)];
  const words = ({ method, right, sure }) => `${method}: right ${percent(right, 1)}, sure ${percent(sure, 1)}`;
  const tall = 40;
  const ticks = steps(Math.max(0, low), high, width < 500 ? 4 : 8);
  const { svg, X } = axes({
    width, height: tall * facts.length + 48, left: 18, top: 0, label: `How right, and how sure: ${facts.map(words).join("; ")}`,
    x: { low: Math.max(0, low), high, ticks, show: percentOf(ticks), name: "of the answers" }, y: { low: 0, high: 1, ticks: [] },
  });
  facts.forEach((fact, i) => {
    const y = tall * i + 28;
    const { colour } = lookOf(fact.method);
    svg.append(el("text", { x: 0, y: y - 12 }, words(fact)));
    svg.append(el("line", { x1: X(fact.right), x2: X(fact.sure), y1: y, y2: y, style: `stroke:${colour}`, "stroke-width": 3 }));
    for (const [value, hollow] of [[fact.sure, true], [fact.right, false]]) svg.append(marker(X(value), y, { colour, shape: SHAPES[0] }, hollow));
  });
  return el("figure", {}, svg);
}

function riskCoverage(risks, methods, lookOf, width) {
  const top = Math.max(0.02, ...methods.flatMap((method) => risks[method].risk)) * 1.05;
  const ticks = steps(0, top);
  const { svg, X, Y } = axes({
    width, height: 380, label: `Share of wrong answers among the surest, of ${methods.join(", ")}`,
    x: { low: 0, high: 1, ticks: [0, 0.25, 0.5, 0.75, 1], show: (v) => percent(v), name: "share of the questions answered" },
    y: { low: 0, high: top, ticks, show: percentOf(ticks), name: "wrong answers" },
  });
  const targets = [];
  for (const method of methods) {
    const { coverage, risk } = risks[method];
    const points = coverage.map((c, i) => [X(c), Y(risk[i])]);
    svg.append(path(points, lookOf(method)));
    const every = Math.max(1, Math.floor(coverage.length / 40));
    coverage.forEach((c, i) => {
      if (i % every && i < coverage.length - 1) return;
      targets.push({ x: points[i][0], y: points[i][1], text: `${method}: ${percent(risk[i], 1)} wrong when the surest ${percent(c, 1)} are answered.` });
    });
  }
  return figure(null, svg, targets);
}

// Accuracy over a calibration metric: curves join the settings in their order, hollow marks are single points.
function frontierOf(frontier, metric, measures, methods, lookOf, width) {
  const points = frontier.points.filter((p) => methods.includes(p.label) && p.metrics[metric][0] !== null);
  const [across, up] = [measures[metric], measures.accuracy];
  const range = (name) => {
    const ends = points.flatMap((p) => [-1, 1].map((s) => p.metrics[name][0] + s * (p.metrics[name][1] ?? 0)));
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const room = 0.07 * (high - low || 0.02);
    return [low - room, high + room];
  };
  if (!points.length) return paragraph("Every method is switched off.");
  const [[x0, x1], [y0, y1]] = [range(metric), range("accuracy")];
  const show = (how) => (v) => (how.percent ? short(100 * v) : short(v));
  const { svg, X, Y } = axes({
    width, height: 420, label: `Accuracy against ${across.title} along the ${frontier.over}`,
    x: { low: x0, high: x1, ticks: steps(x0, x1, width < 500 ? 4 : 6), show: show(across), name: across.heading },
    y: { low: y0, high: y1, ticks: steps(y0, y1), show: show(up), name: up.heading },
  });
  const targets = [];
  const value = (how, [mean, error]) => {
    const text = (v) => `${(how.percent ? 100 * v : v).toFixed(how.digits)}`;
    return `${how.title} ${text(mean)}${error === null ? "" : ` ± ${text(error)}`}${how.percent ? " %" : ""}`;
  };
  for (const label of methods) {
    const curve = points.filter((p) => p.label === label && p.value !== null);
    const at = (p) => [X(p.metrics[metric][0]), Y(p.metrics.accuracy[0])];
    if (curve.length > 1) svg.append(path(curve.map(at), { ...lookOf(label), width: 1.4 }));
    for (const p of points.filter((other) => other.label === label)) {
      const [x, y] = at(p);
      const [dx, dy] = [p.metrics[metric][1], p.metrics.accuracy[1]];
      if (dx !== null && dy !== null) {
        const cross = [[X(x0 + dx) - X(x0), 0], [0, Y(y0) - Y(y0 + dy)]];
        for (const [a, b] of cross) {
          svg.append(el("line", { x1: x - a, x2: x + a, y1: y - b, y2: y + b, class: "error", style: `stroke:${lookOf(label).colour}` }));
        }
      }
      svg.append(marker(x, y, lookOf(label), p.value === null));
      if (p.value !== null) svg.append(el("text", { class: "tag", x: x + 7, y: y - 6 }, short(p.value)));
      const where = p.value === null ? label : `${label}, ${frontier.short} ${short(p.value)}`;
      targets.push({ x, y, text: `${where}: ${value(up, p.metrics.accuracy)}, ${value(across, p.metrics[metric])}; ${p.seeds} seed${p.seeds > 1 ? "s" : ""}.` });
    }
  }
  return figure(null, svg, targets);
}

// A square for each tensor: modules down, layers across; the darker, the larger (logarithmic).
function heatMap(tensors, quantity, width) {
  const layers = [...new Set(tensors.map((t) => t.layer))].sort((a, b) => (a ?? 1e9) - (b ?? 1e9));
  const modules = [...new Set(tensors.map((t) => t.module))];
  const values = tensors.map(quantity.of).filter((v) => v !== null && v > 0 && Number.isFinite(v));
  const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [1, 1];
  const depth = (v) => (high > low ? Math.log(Math.max(v, low) / low) / Math.log(high / low) : 0.5);
  const [left, top, tall] = [Math.min(150, 14 + 6.2 * Math.max(...modules.map((m) => m.length))), 6, 22];
  const wide = Math.min(46, (width - left - 8) / layers.length);
  const height = top + tall * modules.length + 40;
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: "0", class: "chart",
    "aria-label": `${quantity.name} by module and layer, from ${short(low)} to ${short(high)}` });
  modules.forEach((module, i) => svg.append(el("text", { class: "tick", x: left - 6, y: top + tall * (i + 0.5) + 4, "text-anchor": "end" }, module)));
  const every = Math.ceil(20 / wide);
  layers.forEach((layer, j) => {
    if (layer === null || j % every === 0) svg.append(el("text", { class: "tick", x: left + wide * (j + 0.5), y: top + tall * modules.length + 15, "text-anchor": "middle" }, layer === null ? "–" : String(layer)));
  });
  svg.append(el("text", { class: "name", x: left + (wide * layers.length) / 2, y: height - 6, "text-anchor": "middle" }, "layer"));
  const targets = [];
  for (const tensor of tensors) {
    const [x, y] = [left + wide * layers.indexOf(tensor.layer), top + tall * modules.indexOf(tensor.module)];
    const value = quantity.of(tensor);
    const opacity = value !== null && value > 0 ? (0.08 + 0.92 * depth(value)).toFixed(3) : 0;
    svg.append(el("rect", { x: x + 0.5, y: y + 0.5, width: wide - 1, height: tall - 1, class: "heat", "fill-opacity": opacity }));
    targets.push({ x: x + wide / 2, y: y + tall / 2,
      text: `${tensor.module}${tensor.layer === null ? "" : `, layer ${tensor.layer}`}: ${quantity.name} ${value === null ? "not finite" : short(value)}; ${tensor.entries.toLocaleString("en")} entries.` });
  }
  const scale = el("p", { class: "scale" }, `${short(low)} `, el("span", { class: "ramp" }), ` ${short(high)} (logarithmic)`);
  const made = figure(null, svg, targets);
  made.append(scale);
  return made;
}

// One line for each training and seed of a logged quantity.
function training(curves, name, lookOf, width) {
  const lines = curves
    .map((curve) => ({ curve, points: (curve.values[name]?.steps ?? []).map((s, i) => [s, curve.values[name].values[i]]).filter(([, v]) => v !== null) }))
    .filter((l) => l.points.length);
  if (!lines.length) return paragraph("Every training that logs this is switched off.");
  const [xs, ys] = [0, 1].map((i) => lines.flatMap((l) => l.points.map((p) => p[i])));
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const log = low > 0 && high / low > 50;
  const room = log ? 0 : 0.05 * (high - low || Math.abs(high) || 1);
  const [y0, y1] = [low - room, high + room];
  const x1 = Math.max(...xs);
  const { svg, X, Y } = axes({
    width, height: 360, left: 64, label: `${name} over the training steps`,
    x: { low: 0, high: x1, ticks: steps(0, x1, width < 500 ? 4 : 6), show: short, name: "step" },
    y: { low: y0, high: y1, ticks: log ? powers(y0, y1) : steps(y0, y1), show: short, name: `${name}${log ? " (logarithmic)" : ""}`, log },
  });
  const targets = [];
  for (const { curve, points } of lines) {
    const at = points.map(([s, v]) => [X(s), Y(v)]);
    svg.append(path(at, { ...lookOf(curve.label), width: 1.3 }));
    if (at.length === 1) svg.append(marker(...at[0], lookOf(curve.label)));
    points.forEach(([s, v], i) => targets.push({ x: at[i][0], y: at[i][1], text: `${curve.label}, seed ${curve.seed}, step ${s}: ${name} ${short(v)}.` }));
  }
  return figure(null, svg, targets);
}
