// Elements, tables and choices. Nothing here knows what a study is. Text is always set as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "path", "line", "rect", "circle", "text"]);

function el(tag, attributes = {}, ...children) {
  const made = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function number(value, text) {
  return el("data", { value: value === null ? null : String(value) }, text);
}

function line(parts, kind) {
  const shown = parts.map((part) => (typeof part === "string" ? part.replace("± ", "±\u00a0") : number(part.value, part.text)));
  return el("span", { class: kind }, ...shown);
}

// A cell's first line is its statement. A verdict has a mark, so that none depends on its colour.
function cellOf(cell, marks, difference) {
  const shown = el("td", { class: cell.strong ? "best" : "", "data-metric": cell.metric || null });
  if (!cell.lines.length) shown.append("–");
  cell.lines.forEach((parts, index) => {
    const verdict = cell.verdict && index === cell.verdict_line ? cell.verdict : "";
    const made = line(parts, `${index ? "detail" : "main"} ${verdict && `verdict ${verdict}`}`);
    if (verdict) made.prepend(el("span", { class: "mark", "aria-hidden": "true" }, `${marks[verdict]} `));
    shown.append(made);
  });
  if (difference && difference.lines.length) {
    const made = el("span", { class: `verdict ${difference.verdict}`, title: `against the reference: ${difference.verdict}` });
    made.append(el("span", { class: "mark", "aria-hidden": "true" }, `${marks[difference.verdict]} `));
    made.append(...line(difference.lines[0], "").childNodes);
    shown.append(made);
    for (const parts of difference.lines.slice(1)) shown.append(line(parts, "detail"));
  }
  return shown;
}

function firstNumber(cell) {
  if (!cell.lines.length) return null;
  const part = cell.lines[0].find((p) => typeof p !== "string");
  return part ? part.value : cell.lines[0].join("");
}

let captions = 0;

// A table whose columns sort: best first, worst first, as it was. `differences` adds a table's cells below this one's.
function tableOf(table, { kind, marks, differences = null }) {
  const body = el("tbody");
  const heads = [];
  let sorted = { column: -1, way: 0 };
  const added = new Map((differences ? differences.rows : []).map((row) => [row.name, row.cells]));
  const key = (row, column) => (column === 0 ? row.name : firstNumber(row.cells[column - 1]));
  function fill() {
    const rows = [...table.rows];
    if (sorted.way) {
      rows.sort((one, two) => {
        const [a, b] = [key(one, sorted.column), key(two, sorted.column)];
        if (a === null || b === null) return (a === null) - (b === null);
        return (a < b ? -1 : a > b ? 1 : 0) * sorted.way;
      });
    }
    body.replaceChildren(...rows.map((row) => {
      const cells = row.cells.map((cell, i) => cellOf(cell, marks, added.get(row.name)?.[i]));
      return el("tr", {}, el("th", { scope: "row" }, row.name), ...cells);
    }));
    heads.forEach((head, i) => {
      const way = i === sorted.column ? sorted.way : 0;
      head.setAttribute("aria-sort", way ? (way > 0 ? "ascending" : "descending") : "none");
    });
  }
  table.headings.forEach((heading, column) => {
    const first = heading.endsWith("↑") ? -1 : 1;
    const sort = () => {
      const way = sorted.column === column ? { [first]: -first, [-first]: 0, 0: first }[sorted.way] : first;
      sorted = { column, way };
      fill();
    };
    heads.push(el("th", { scope: "col" }, el("button", { type: "button", title: "Sort", onclick: sort }, heading)));
  });
  fill();
  // Under the table and not in it, so that it stays in sight where a wide table scrolls.
  const caption = el("p", { class: "caption", id: `caption-${captions += 1}` }, table.caption);
  const made = el("table", { class: kind, "aria-describedby": caption.id }, el("thead", {}, el("tr", {}, ...heads)), body);
  return el("div", { class: "tabled" }, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, made), caption);
}

function choice(label, options, chosen, changed, id) {
  const select = el("select", { id, onchange: (event) => changed(event.target.value) },
    ...options.map(([value, text]) => el("option", { value, selected: String(value) === String(chosen) }, text)));
  return el("label", { class: "choice" }, el("span", {}, label), select);
}

function paragraph(text, kind = null) {
  return el("p", { class: kind }, text);
}

// Text with `code` in it.
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));
}

function listOfSettings(settings) {
  return el("dl", { class: "settings" },
    ...Object.entries(settings).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
}
