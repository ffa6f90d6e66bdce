// Figures as inline SVG, one unit a pixel. Each is focusable: the arrow keys go over its points as the pointer does.
const SHAPES = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-4-4H4V4H-4Z", "M0-5L4.8 3.6H-4.8Z", "M0-5.4L4.6 0L0 5.4L-4.6 0Z",
  "M0 5L4.8-3.6H-4.8Z", "M-5-1.6H-1.6V-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5Z", "M-5-3H5V3H-5Z", "M-3-5H3V5H-3Z",
];

const DASHES = ["", "8.5 3.4", "2.55 2.55", "10.2 3.4 2.55 3.4", "15.3 5.1", "5.1 2.55 1.7 2.55 1.7 2.55", "3.4 5.1", "13.6 3.4 3.4 3.4 3.4 3.4"];
const COLOURS = 8; // --series-0 to --series-7

// Of more names than there are colours, the colours come again with other dashes and marks.
function look(index) {
  const [place, again] = [index % COLOURS, Math.floor(index / COLOURS)];
  return {
    colour: `var(--series-${place})`,
    dash: DASHES[(place + again) % DASHES.length],
    shape: SHAPES[(place + again) % SHAPES.length],
  };
}

function steps(low, high, count = 5) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(i * step);
  return ticks;
}

function powers(low, high) {
  const ticks = [];
  for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p += 1) ticks.push(10 ** p);
  return ticks.length > 1 ? ticks : [low, high];
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(1).replace("e+", "e").replace(".0e", "e") : String(Number(value.toPrecision(3)));
  return text.replace("-", "−");
}

// Axes with ticks and names. x, y: {low, high, ticks, show, name, log}. Returns the drawing and its two scales.
function axes({ width, height, left = 54, right = 22, top = 10, bottom = 42, x, y, label }) {
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label, tabindex: "0", class: "chart" });
  const scale = (axis, from, to) => {
    const map = axis.log ? Math.log10 : (v) => v;
    const [low, span] = [map(axis.low), map(axis.high) - map(axis.low) || 1];
    return (value) => from + ((map(value) - low) / span) * (to - from);
  };
  const [X, Y] = [scale(x, left, width - right), scale(y, height - bottom, top)];
  for (const tick of y.ticks) {
    svg.append(el("line", { class: "grid", x1: left, x2: width - right, y1: Y(tick), y2: Y(tick) }));
    svg.append(el("text", { class: "tick", x: left - 7, y: Y(tick) + 4, "text-anchor": "end" }, y.show(tick)));
  }
  for (const tick of x.ticks) {
    svg.append(el("line", { class: "axis", x1: X(tick), x2: X(tick), y1: height - bottom, y2: height - bottom + 4 }));
    svg.append(el("text", { class: "tick", x: X(tick), y: height - bottom + 17, "text-anchor": "middle" }, x.show(tick)));
  }
  svg.append(el("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  svg.append(el("text", { class: "name", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.name));
  if (y.name) {
    const middle = (top + height - bottom) / 2;
    svg.append(el("text", { class: "name", x: 0, y: 0, "text-anchor": "middle", transform: `translate(12 ${middle}) rotate(-90)` }, y.name));
  }
  return { svg, X, Y };
}

function path(points, { colour, dash, width = 1.8 }) {
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
  return el("path", { d, fill: "none", style: `stroke:${colour}`, "stroke-width": width, "stroke-dasharray": dash || null });
}

function marker(x, y, { colour, shape }, hollow = false) {
  const style = hollow ? `stroke:${colour};fill:var(--paper)` : `stroke:var(--paper);fill:${colour}`;
  return el("path", { d: shape, transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`, style, "stroke-width": hollow ? 2 : 1 });
}

// The figure with a line below it that reads out the point under the pointer, or under the arrow keys.
function figure(title, svg, targets, hint = "Point at the figure, or focus it and press ← or →, to read its numbers.") {
  const readout = el("p", { class: "readout", "aria-live": "polite" }, targets.length ? hint : "");
  const ring = el("circle", { r: 8, class: "ring", visibility: "hidden" });
  svg.append(ring);
  let at = -1;
  function choose(index) {
    at = (index + targets.length) % targets.length;
    const target = targets[at];
    ring.setAttribute("cx", target.x);
    ring.setAttribute("cy", target.y);
    ring.setAttribute("visibility", "visible");
    readout.textContent = target.text;
  }
  if (targets.length) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      const far = (target) => (target.x - x) ** 2 + ((target.y - y) * (target.across ? 0.05 : 1)) ** 2;
      choose(targets.reduce((best, target, i) => (far(target) < far(targets[best]) ? i : best), 0));
    });
    svg.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (way === undefined) return;
      event.preventDefault();
      choose(at < 0 && way < 0 ? -1 : at + way);
    });
  }
  return el("figure", {}, title ? el("figcaption", {}, title) : null, svg, readout);
}
