"use strict";
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let models = [];
let last = null;
let asked = 0;
let loading;

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function fetched(path, body) {
  const options = body === undefined ? { headers: headers() } : { method: "POST", headers: headers(), body: JSON.stringify(body) };
  let response;
  try { response = await fetch(path, options); } catch { throw new Error("The server does not answer. Is it still running?"); }
  const content = await response.json().catch(() => ({}));
  if (response.status === 401) $("key-field").hidden = false;
  if (!response.ok) throw new Error(content.error?.message ?? `The server answers with status ${response.status}.`);
  return content;
}

function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text ?? "";
}

const facts = () => models.find((model) => model.id === $("model").value)?.varlora;
const task = () => document.querySelector("input[name=task]:checked")?.value;

async function loadModels() {
  try {
    models = (await fetched("/v1/models")).data;
  } catch (error) {
    $("status").textContent = $("key-field").hidden ? error.message : "This server wants an API key.";
    $("send").disabled = true;
    return;
  }
  $("send").disabled = false;
  $("model").replaceChildren(...models.map((model) => new Option(model.id)));
  chooseModel();
  problem("");
}

function chooseModel() {
  const known = facts();
  for (const radio of document.querySelectorAll("input[name=task]")) {
    radio.disabled = !(radio.value === "classify" ? known.classifies : known.writes);
  }
  if (!task() || document.querySelector("input[name=task]:checked").disabled) {
    document.querySelector(`input[name=task][value=${known.classifies ? "classify" : "write"}]`).checked = true;
  }
  $("task-field").hidden = !(known.classifies && known.writes);
  const draws = known.classifies ? (known.num_draws === 1 ? "one pass" : `${known.num_draws} draws averaged`) : "";
  $("status").textContent = known.classifies ? `${known.classes.length} classes, ${draws}.` : "Writes texts.";
  chooseTask();
}

function chooseTask() {
  const known = facts(), classify = task() === "classify";
  const choice = classify && known.kind === "choice";
  const passage = classify && known.kind === "label" && known.classes.join() === "no,yes";
  $("choices-field").hidden = !choice;
  $("passage-field").hidden = !passage;
  $("writing-field").hidden = classify;
  $("samples").max = known.samples ?? 0;
  $("samples").disabled = !known.samples;
  $("text-label").textContent = choice || passage ? "Question" : classify ? "Text" : known.chat ? "Message" : "Prompt";
  $("answer").hidden = true;
  asked += 1;
}

function row() {
  const text = $("text").value;
  if (!$("choices-field").hidden) {
    return { question: text, choices: $("choices").value.split("\n").map((line) => line.trim()).filter(Boolean) };
  }
  return $("passage-field").hidden ? { text } : { passage: $("passage").value, question: text };
}

async function ask(event) {
  event.preventDefault();
  problem("");
  $("send").disabled = true;
  $("send").textContent = "Asking…";
  await loading;
  if (!models.length) {
    $("send").textContent = "Ask";
    return;
  }
  const number = ++asked;
  try {
    const answer = task() === "classify"
      ? await fetched("/v1/classify", { model: $("model").value, rows: [row()], draws: true })
      : await fetched(...writing());
    if (number === asked) {
      last = { answer, classify: task() === "classify" };
      show();
    }
  } catch (error) {
    if (number === asked) {
      $("answer").hidden = true;
      problem(error.message);
    }
  } finally {
    $("send").disabled = false;
    $("send").textContent = "Ask";
  }
}

function writing() {
  const text = $("text").value;
  const common = { model: $("model").value, max_tokens: Number($("tokens").value), samples: Number($("samples").value) };
  return facts().chat
    ? ["/v1/chat/completions", { ...common, messages: [{ role: "user", content: text }] }]
    : ["/v1/completions", { ...common, prompt: text }];
}

function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function show() {
  const { answer, classify } = last;
  $("answer").hidden = false;
  $("abstain").hidden = !classify;
  $("written").hidden = classify;
  if (classify) showClasses(answer.answers[0], answer.classes, answer.num_draws);
  else showText(answer.choices[0]);
  $("answer-title").focus({ preventScroll: true });
  $("answer").scrollIntoView({ block: "nearest" });
}

function bar(name, probability, draws, first, inSet) {
  const made = element("div", undefined, `bar${first ? " first" : ""}${inSet ? " in-set" : ""}`);
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 100 10");
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("role", "img");
  const low = Math.min(...draws), high = Math.max(...draws);
  const spread = draws.length > 1 ? `, draws from ${low.toFixed(3)} to ${high.toFixed(3)}` : "";
  drawing.setAttribute("aria-label", `${name}: ${probability.toFixed(3)}${spread}`);
  const whole = document.createElementNS(SVG, "rect");
  whole.setAttribute("width", 100 * probability);
  whole.setAttribute("height", 10);
  drawing.append(whole);
  if (draws.length > 1) {
    for (const draw of draws) {
      const line = document.createElementNS(SVG, "line");
      for (const [key, value] of Object.entries({ x1: 100 * draw, x2: 100 * draw, y1: 2, y2: 8 })) line.setAttribute(key, value);
      drawing.append(line);
    }
  }
  made.append(element("span", name, "name"), drawing, element("span", probability.toFixed(3), "value"));
  return made;
}

function numbers(pairs) {
  $("numbers").replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

const MOST = 12;
const NO_RULE = "no rule (varlora decide)";

function showClasses(answer, classes, count) {
  const own = $("choices-field").hidden ? [] : row().choices;
  const shown = (label) => own.length ? `${label}. ${own[classes.indexOf(label)] ?? ""}` : label;
  const set = new Set(answer.prediction_set ?? []);
  const labels = Object.keys(answer.probabilities);
  const order = labels.map((label, at) => [label, at]).sort((a, b) => answer.probabilities[b[0]] - answer.probabilities[a[0]]);
  $("verdict").replaceChildren(element("strong", shown(answer.label)), ` with probability ${answer.probability.toFixed(3)}`);
  $("bars").replaceChildren(...order.slice(0, MOST).map(([label, at]) =>
    bar(shown(label), answer.probabilities[label], answer.draws.map((draw) => draw[at]), label === answer.label, set.has(label))));
  const more = labels.length > MOST ? ` ${labels.length - MOST} less likely classes are not shown.` : "";
  $("spread-note").textContent = (count > 1 ? `Each stroke is one of ${count} draws of the weights.` : "One pass: there are no draws to compare.") + more;
  const decided = answer.answered === null ? NO_RULE
    : answer.answered ? "yes" : `no: ${answer.reason}`;
  numbers([
    ["Entropy", `${answer.entropy.toFixed(3)} nats`],
    ...(answer.mutual_information === null ? [] : [["Draws disagree by", `${answer.mutual_information.toFixed(4)} nats`]]),
    ["Prediction set", answer.prediction_set === null ? NO_RULE
      : answer.prediction_set.map(shown).join(", ") || "empty"],
    ["Answered by rule", decided],
  ]);
  showAbstention();
}

function showAbstention() {
  const step = Number($("threshold").value), least = step / 100;
  $("threshold-value").textContent = least.toFixed(2);
  if (!last?.classify) return;
  const answer = last.answer.answers[0], sure = answer.probability >= least;
  $("abstain-row").replaceChildren("This one: ", element("span", sure ? "answered" : "not answered", sure ? "yes" : "no"), ".");
  const known = facts().abstention;
  if (!known) {
    $("abstain-run").textContent = "This folder holds no validation rows that were predicted as this is.";
    return;
  }
  const right = known.right[step];
  $("abstain-run").textContent = `Of ${known.rows} validation rows ${percent(known.answered[step])} are answered` +
    (right === null ? "." : `, and ${percent(right)} of those rightly.`);
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function showText(choice) {
  const ours = choice.varlora;
  const voted = ours.agreement !== undefined;
  $("verdict").replaceChildren(voted ? element("strong", ours.answer ?? "no answer") : element("strong", "Written at the mean"));
  $("bars").replaceChildren(...(voted ? ours.answers.slice(0, MOST).map((one, at) => bar(one.answer, one.share, [one.share], at === 0, false)) : []));
  $("spread-note").textContent = voted ? `${ours.samples} draws of the weights wrote; bars are the shares of their answers.` : "";
  numbers([
    ["Log-likelihood a token", ours.log_likelihood_per_token === null ? "none" : `${ours.log_likelihood_per_token.toFixed(3)} nats`],
    ...(voted ? [["Agreement", percent(ours.agreement)], ["Entropy of the votes", `${ours.entropy.toFixed(3)} nats`]] : []),
    ["Finished", ours.finished ? "yes" : "no, cut at the most new tokens"],
  ]);
  $("written").textContent = choice.message?.content ?? choice.text;
}

$("ask").addEventListener("submit", ask);
$("model").addEventListener("change", chooseModel);
$("task-field").addEventListener("change", chooseTask);
const load = () => { loading = loadModels(); };
$("use-key").addEventListener("click", load);
$("key").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); load(); } });
$("threshold").addEventListener("input", showAbstention);
$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
load();
