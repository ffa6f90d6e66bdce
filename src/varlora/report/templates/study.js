// The page: what is chosen, and what each part shows of it.
const study = JSON.parse(document.getElementById("study").textContent);
const state = { block: 0, split: null, tab: null, hidden: new Set(), metric: "accuracy", against: "ece_15", over: 0, method: null, kind: "errors", text: "", training: null, quantity: "snr", log: null };
const tableWith = (table, kind, differences) => tableOf(table, { kind, marks: study.marks, differences });
const block = () => study.blocks[state.block];
const split = () => block()?.splits[state.split];
const shown = (names) => names.filter((name) => !state.hidden.has(name));
const nameOf = (b) => `${b.task}, ${b.model}`;

function widthFor(most = 720) {
  return Math.max(260, Math.min(most, Math.floor(document.querySelector("#panels").clientWidth)));
}

// Methods come first, then whatever else has a name, so that a method has one look everywhere.
function lookIn(names) {
  const all = [...new Set([...block().methods, ...names])];
  return (name) => look(all.indexOf(name));
}

function set(changes) {
  Object.assign(state, changes);
  draw();
}

function keep(id, made) {
  made.id = id;
  return made;
}

function legend(names, { marks = false } = {}) {
  const lookOf = lookIn(names);
  return el("div", { class: "legend", role: "group", "aria-label": "Shown in the figure" }, ...names.map((name) => {
    const { colour, dash, shape } = lookOf(name);
    const swatch = el("svg", { viewBox: "0 0 34 14", width: 34, height: 14, "aria-hidden": "true" },
      el("path", { d: "M1 7H33", style: `stroke:${colour}`, "stroke-width": 2, "stroke-dasharray": dash || null }),
      marks ? el("path", { d: shape, transform: "translate(17 7)", style: `fill:${colour}` }) : null);
    const toggle = () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      draw();
    };
    return keep(`legend-${name}`, el("button", { type: "button", "aria-pressed": String(!state.hidden.has(name)), onclick: toggle }, swatch, name));
  }));
}

function panelOverview() {
  const found = study.overview[state.split] ?? Object.values(study.overview)[0];
  if (!found || study.blocks.length < 2) return null;
  const metric = found.metrics[state.metric] ? state.metric : Object.keys(found.metrics)[0];
  const options = Object.keys(found.metrics).map((name) => [name, study.measures[name].title]);
  return [
    choice("Metric", options, metric, (value) => set({ metric: value }), "metric"),
    tableWith(found.metrics[metric], "results overview"),
    ...(found.record.rows.length ? [el("h2", {}, "Better and worse, by task"), tableWith(found.record, "results record")] : []),
  ];
}

function panelResults() {
  const [b, s] = [block(), split()];
  const made = [];
  if (s) {
    made.push(paragraph(s.reading, "lead"));
    made.push(tableWith(s.results, "results", s.differences));
    if (s.differences) made.push(el("details", {}, el("summary", {}, `How to read the differences from ${b.reference}, the last lines of a cell`), paragraph(`${s.differences.caption} ${Object.entries(study.marks).map(([word, mark]) => `${mark} ${word}`).join(", ")}.`, "note")));
    made.push(el("h2", {}, "How sure each is"), paragraph("Filled: the share of right answers. Hollow: the confidence that is stated, on average; to the right of the share, the method is surer than it should be. “Calibration” has it by confidence."));
    made.push(sureness(s.bins, b.methods, lookIn([]), widthFor()));
  } else if (!b.completions.length) {
    made.push(paragraph("There is nothing to compare yet."));
  }
  for (const table of b.completions) made.push(tableWith(table, "results"));
  for (const table of b.detection) made.push(el("h2", {}, "Rows of no known class"), tableWith(table, "results"));
  if (b.missing.length) made.push(el("h2", {}, "What is missing here"), el("ul", {}, ...b.missing.map((words) => el("li", {}, words))));
  if (b.notes.length) made.push(el("h2", {}, "The data"), el("ul", {}, ...b.notes.map((words) => el("li", {}, words))));
  return made;
}

function panelCalibration() {
  const s = split();
  if (!s) return null;
  const tallest = Math.max(...Object.values(s.bins).map((bins) => {
    const total = bins.reduce((sum, bin) => sum + bin.count, 0);
    return Math.max(...bins.map((bin) => Math.max(bin.right, bin.wrong) / total));
  }));
  const width = widthFor(300);
  return [
    el("p", {}, "Does a confidence of 80 % mean right four times out of five? Each bar stands for the answers of about that confidence and reaches up to the share of them that was right. Hatched is the gap to the stated confidence: below the dashed line the method claims more than it delivers, above it less. Below: how many answers of each confidence were ",
      el("span", { class: "key right" }, "right"), " (upwards) and ", el("span", { class: "key wrong" }, "wrong"),
      ` (downwards). All seeds together, ${study.bins} bins; bars of fewer than ${study.few} answers are pale.`),
    legend(block().methods),
    el("div", { class: "multiples" }, ...shown(block().methods).map((method) => reliability(method, s.bins[method], { width, few: study.few, tallest }))),
  ];
}

function panelSelective() {
  const s = split();
  if (!s) return null;
  const methods = shown(block().methods);
  return [
    paragraph("If a method may decline the questions that it is least sure of, how often is it wrong on the rest? Lower is better; the right end is the error rate on all questions. Mean over seeds; the surest 5 % are left out, being too few to judge."),
    legend(block().methods),
    methods.length ? riskCoverage(s.risk, methods, lookIn([]), widthFor()) : paragraph("Every method is switched off."),
  ];
}

function panelFrontier() {
  const all = block()?.frontiers ?? [];
  if (!all.length) return null;
  const frontier = all[state.over] ?? all[0];
  const labels = [...new Set(frontier.points.map((p) => p.label))];
  return [
    el("div", { class: "controls" },
      choice("Along", all.map((f, i) => [i, `${f.over}, on ${f.split}`]), all.indexOf(frontier), (value) => set({ over: Number(value) }), "over"),
      choice("Against", Object.keys(study.measures).filter((name) => name !== "accuracy").map((name) => [name, study.measures[name].title]), state.against, (value) => set({ against: value }), "against")),
    paragraph(`Filled marks: one training, at each ${frontier.over} (the number beside it). Hollow marks: the methods as they are. Better is up and to the ${study.measures[state.against].better === "higher" ? "right" : "left"}. Crosses: ± one standard error over seeds.`),
    legend(labels, { marks: true }),
    frontierOf(frontier, state.against, study.measures, shown(labels), lookIn(labels), widthFor()),
    tableWith(frontier.table, "results"),
  ];
}

function panelExamples() {
  const b = block();
  const methods = [...new Set((b?.examples ?? []).flatMap((e) => Object.keys(e.answers)))];
  if (!methods.length) return null;
  const method = methods.includes(state.method) ? state.method : methods[0];
  const doubted = state.kind === "doubt";
  const ranked = b.examples
    .filter((e) => e.answers[method] && (doubted ? e.answers[method].mutual_information !== null : e.answers[method].answer !== e.label))
    .sort((one, two) => (doubted ? two.answers[method].mutual_information - one.answers[method].mutual_information : two.answers[method].confidence - one.answers[method].confidence))
    .slice(0, study.cap);
  const list = el("tbody");
  const count = el("p", { class: "note", "aria-live": "polite" });
  const fill = () => {
    const found = ranked.filter((e) => `${e.id} ${e.prompt} ${e.label} ${e.answers[method].answer}`.toLowerCase().includes(state.text.toLowerCase()));
    count.textContent = `${found.length} of ${ranked.length} shown. The page holds at most ${study.cap} rows of each kind for each method, out of ${b.examples_of}; probabilities are averaged over seeds.`;
    list.replaceChildren(...found.map((e) => exampleRow(e, method)));
  };
  fill();
  const heads = ["Question", "Right answer", "Answer", "Confidence", "p(right)", "Mutual information", "Others"];
  return [
    el("div", { class: "controls" },
      choice("Method", methods.map((m) => [m, m]), method, (value) => set({ method: value }), "method"),
      choice("Show", [["errors", "most confident errors"], ["doubt", "highest mutual information"]], state.kind, (value) => set({ kind: value }), "kind"),
      el("label", { class: "choice" }, el("span", {}, "Filter"), el("input", { id: "filter", type: "search", value: state.text, oninput: (event) => {
        state.text = event.target.value;
        fill();
      } }))),
    count,
    ranked.length ? el("table", { class: "examples" }, el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), list)
      : paragraph(doubted ? "This method has no draws, so none that disagree." : "This method made no error."),
  ];
}

function exampleRow(example, method) {
  const own = example.answers[method];
  const share = (value) => (value === null ? "–" : number(value, percent(value, 1)));
  const others = Object.entries(example.answers).filter(([name]) => name !== method).map(([name, a]) =>
    el("li", {}, `${name}: `, el("span", { class: a.answer === example.label ? "correct" : "incorrect" }, a.answer === example.label ? "✓ " : "✗ ", a.answer), " ", share(a.confidence)));
  const cell = (label, ...content) => el("td", { "data-label": label }, ...content);
  const doubt = own.mutual_information === null ? "–" : number(own.mutual_information, own.mutual_information.toFixed(3));
  return el("tr", {},
    el("th", { scope: "row" }, el("span", { class: "detail" }, example.id), el("span", { class: "prompt" }, example.prompt)),
    cell("Right answer", example.label), cell("Answer", own.answer === example.label ? "✓ " : "✗ ", own.answer), cell("Confidence", share(own.confidence)),
    cell("p(right)", share(own.right)), cell("Mutual information", doubt), cell("Others", el("ul", { class: "others" }, ...others)));
}

const QUANTITIES = {
  snr: { name: "SNR (median of |m| / σ)", of: (t) => t.snr },
  std: { name: "σ (root mean square)", of: (t) => t.std },
  variance: { name: "variance σ² (mean)", of: (t) => (t.std === null ? null : t.std ** 2) },
  ratio: { name: "noise / weights", of: (t) => (t.weights > 0 ? t.std / t.weights : null) },
};

function panelPosterior() {
  const b = block();
  const maps = (b?.scales.maps ?? []).map(({ label, seed, std, weights, snr }) => ({
    label, seed, tensors: b.scales.tensors.map((t, i) => ({ ...t, std: std[i], weights: weights[i], snr: snr[i] })).filter((t) => t.std !== null),
  }));
  const trainings = new Map([...maps, ...(b?.health ?? [])].map(({ label, seed }) => [`${label}, seed ${seed}`, { label, seed }]));
  if (!trainings.size) return null;
  const name = trainings.has(state.training) ? state.training : [...trainings.keys()][0];
  const ofIt = (all) => all.find(({ label, seed }) => label === trainings.get(name).label && seed === trainings.get(name).seed);
  const [health, map] = [ofIt(b.health), ofIt(maps)];
  return [
    el("div", { class: "controls" }, choice("Training", [...trainings.keys()].map((n) => [n, n]), name, (value) => set({ training: value }), "training")),
    ...(health ? healthOf(health) : []),
    ...(map ? tensorsOf(map) : []),
  ];
}

function healthOf(health) {
  return [
    el("h2", {}, "Health of the posterior"),
    el("p", { class: "lead" }, ...prose(health.sentence)),
    ...health.remarks.map((words) => el("p", {}, ...prose(words))),
    ...(health.statements.length ? [el("dl", { class: "health" }, ...health.statements.flatMap(([term, value, meaning]) => [
      el("dt", {}, term), el("dd", {}, el("strong", {}, value), ` ${meaning}.`),
    ]))] : []),
    ...(health.scales ? [tableWith(health.scales, "small")] : []),
  ];
}

function tensorsOf(map) {
  const exact = (value) => ({ text: value === null ? "∞" : short(value), value });
  const cells = (t) => [[`${t.layer ?? "–"}`], [exact(t.std)], [exact(t.weights)], [exact(t.snr)], [t.entries.toLocaleString("en")]].map((parts) => ({ lines: [parts], strong: false, verdict: "", verdict_line: 0, metric: "" }));
  const table = { caption: "Every tensor of this posterior.", headings: ["Tensor", "Layer", "σ", "Weights", "SNR", "Entries"], rows: map.tensors.map((t) => ({ name: t.key, cells: cells(t) })) };
  return [
    el("h2", {}, "Its tensors"),
    choice("Show", Object.entries(QUANTITIES).map(([key, q]) => [key, q.name]), state.quantity, (value) => set({ quantity: value }), "quantity"),
    paragraph("Each field is one tensor: its module (A and B are the two factors of LoRA) and its layer."),
    heatMap(map.tensors, QUANTITIES[state.quantity], widthFor(860)),
    el("details", {}, el("summary", {}, `Numbers of ${map.tensors.length} tensors`), tableWith(table, "small tensors")),
  ];
}

function panelTraining() {
  const [curves, costs] = [block()?.curves ?? [], block()?.costs];
  if (!curves.length && !costs) return null;
  const names = [...new Set(curves.flatMap((c) => Object.keys(c.values)))];
  const name = names.includes(state.log) ? state.log : names[0];
  const labels = [...new Set(curves.map((c) => c.label))];
  return [
    ...(names.length ? [
      choice("Logged", names.map((n) => [n, n]), name, (value) => set({ log: value }), "log"),
      legend(labels),
      training(curves.filter((c) => !state.hidden.has(c.label)), name, lookIn(labels), widthFor()),
      paragraph(`One line a training and seed; of a long one at most ${study.points} points, evenly spaced.`, "note"),
    ] : []),
    ...(costs ? [el("h2", {}, "Cost"), tableWith(costs, "small")] : []),
  ];
}

function panelAbout() {
  const missing = study.blocks.flatMap((b) => b.missing.map((words) => `${nameOf(b)}: ${words}`));
  const sentences = Object.values(study.measures).map((how) => [how.title, `${how.meaning[0].toUpperCase()}${how.meaning.slice(1)}.`]);
  sentences.push(["±", "The standard error of the mean over seeds: how much training luck there is."]);
  sentences.push(["Interval", "The 95 % bootstrap interval over the examples: how much luck there is in the choice of examples. It does not contain the luck of the seeds."]);
  const groups = Object.entries(study.settings);
  return [
    el("h2", {}, "How to read it"),
    el("dl", {}, ...sentences.flatMap(([term, words]) => [el("dt", {}, term), el("dd", {}, words)])),
    ...(missing.length ? [el("h2", {}, "What is missing"), el("ul", {}, ...missing.map((words) => el("li", {}, words)))] : []),
    ...(groups.length ? [el("h2", {}, "Settings"), el("div", { class: "groups" }, ...groups.map(([group, settings]) => el("div", {}, el("h4", {}, group), listOfSettings(settings))))] : []),
    ...(study.command ? [el("h2", {}, "Run it again"), el("pre", {}, el("code", {}, study.command))] : []),
    paragraph([...Object.entries(study.versions).map(([name, version]) => `${name} ${version}`), ...study.code_versions.map((code) => `code ${code}`)].join(", "), "versions"),
  ];
}

const PANELS = {
  overview: ["All tasks", panelOverview],
  results: ["Results", panelResults],
  calibration: ["Calibration", panelCalibration],
  selective: ["Risk–coverage", panelSelective],
  frontier: ["Frontier", panelFrontier],
  examples: ["Examples", panelExamples],
  posterior: ["Posterior", panelPosterior],
  training: ["Training, cost", panelTraining],
  about: ["About", panelAbout],
};

function draw() {
  const b = block();
  const splits = Object.keys(b?.splits ?? {});
  if (!splits.includes(state.split)) state.split = splits[0] ?? null;
  const focused = document.activeElement?.id;
  const parts = Object.entries(PANELS).filter(([name]) => b || name === "about").map(([name, [title, make]]) => [name, title, make()]).filter(([, , content]) => content);
  if (!parts.some(([name]) => name === state.tab)) state.tab = parts[0][0];
  document.getElementById("controls").replaceChildren(...(b ? [
    ...(study.blocks.length > 1 ? [choice("Task and model", study.blocks.map((other, i) => [i, nameOf(other)]), state.block, (value) => set({ block: Number(value), over: 0, training: null, hidden: new Set() }), "block")] : []),
    ...(splits.length > 1 ? [choice("Split", splits.map((s) => [s, `${s}, ${b.splits[s].examples} rows`]), state.split, (value) => set({ split: value }), "split")] : []),
  ] : []));
  document.getElementById("tabs").replaceChildren(...parts.map(([name, title]) => el("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, "aria-selected": String(name === state.tab),
    tabindex: name === state.tab ? "0" : "-1", onclick: () => set({ tab: name }),
  }, title)));
  document.getElementById("panels").replaceChildren(...parts.map(([name, title, content]) =>
    el("section", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, hidden: name !== state.tab }, el("h2", { class: "printed" }, ["overview", "about"].includes(name) ? title : `${title}: ${[nameOf(b), state.split].filter(Boolean).join(", ")}`), ...content)));
  if (focused) document.getElementById(focused)?.focus();
  const there = new URLSearchParams({ block: state.block, tab: state.tab, ...(state.split ? { split: state.split } : {}) });
  history.replaceState(null, "", `#${there}`);
}

function start() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const index = Number(asked.get("block"));
  if (study.blocks[index]) state.block = index;
  state.split = asked.get("split");
  state.tab = asked.get("tab");
  const missing = study.blocks.reduce((sum, b) => sum + b.missing.length, 0);
  const warnings = [
    ...(missing ? [`Not complete: ${missing} ${missing === 1 ? "thing is" : "things are"} missing, listed under “About”.`] : []),
    ...(study.mixed_code ? ["The runs were made by more than one version of the code, so they may differ for that reason."] : []),
  ];
  const methods = new Set(study.blocks.flatMap((b) => b.methods));
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  document.getElementById("note").textContent = study.note;
  document.getElementById("note").hidden = !study.note;
  document.getElementById("about").textContent = `${count(methods.size, "method")} on ${count(new Set(study.blocks.map((b) => b.task)).size, "task")} with ${count(new Set(study.blocks.map((b) => b.model)).size, "model")}; differences are from ${study.reference}.`;
  const warning = document.getElementById("warning");
  warning.textContent = warnings.join(" ");
  warning.hidden = !warnings.length;
  document.getElementById("tabs").addEventListener("keydown", (event) => {
    const tabs = [...event.currentTarget.children];
    const at = tabs.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs.at(to % tabs.length);
    next.click();
    document.getElementById(next.id).focus();
  });
  draw();
  let width = document.querySelector("#panels").clientWidth;
  window.addEventListener("resize", () => {
    const now = document.querySelector("#panels").clientWidth;
    if (now === width) return;
    width = now;
    draw();
  });
}

start();
