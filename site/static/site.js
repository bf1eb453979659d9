// Tables marked `sortable` get a button in each heading. Without this script they are read as they stand.
"use strict";

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(table.tBodies[0], column, ascending);
    });
  });
}

function sort(body, column, ascending) {
  const key = (row) => {
    const cell = row.cells[column];
    if (!cell) return "";
    const text = cell.dataset.sort ?? cell.textContent.trim();
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const missing = (value) => typeof value !== "number";
  const numeric = [...body.rows].some((row) => !missing(key(row)));
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (numeric && missing(x) !== missing(y)) return missing(x) - missing(y);
    const order = numeric && !missing(x) ? x - y : String(x).localeCompare(String(y));
    return ascending ? order : -order;
  });
  body.append(...rows);
}

// The search of every page leads to the list of techniques, which keeps what has all the words.
const asked = (new URLSearchParams(location.search).get("q") ?? "").trim();
const found = document.getElementById("found");
if (found && asked) search(asked);

function search(text) {
  let count = 0;
  for (const shelf of document.querySelectorAll(".shelf")) {
    const works = [...shelf.querySelectorAll("[data-text]")];
    for (const work of works) work.hidden = !holds(work.dataset.text, text);
    count += works.filter((work) => !work.hidden).length;
    shelf.hidden = works.every((work) => work.hidden);
  }
  for (const area of document.querySelectorAll(".area")) {
    area.hidden = [...area.querySelectorAll(".shelf")].every((shelf) => shelf.hidden);
    for (const bare of area.querySelectorAll(".bare")) bare.hidden = true;
  }
  document.querySelector(".find input").value = text;
  found.append(`${count} ${count === 1 ? "technique" : "techniques"} that run here match “${text}”. `);
  const all = document.createElement("a");
  all.href = location.pathname;
  all.append("Show all");
  found.append(all);
  found.hidden = false;
}

// Whether a text has all the words, whatever their order, case and accents.
function holds(text, words) {
  const known = plain(text);
  return plain(words).trim().split(/\s+/).every((word) => known.includes(word));
}

function plain(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
}

// The ledger: rows that the chosen verdict, area, scale and bed leave.
const ledger = document.getElementById("ledger-filter");
if (ledger) {
  ledger.hidden = false;
  const rows = [...document.querySelectorAll(".ledger tbody tr")];
  const filter = () => {
    const chosen = [...new FormData(ledger)].filter(([, value]) => value);
    const fits = (row, name, value) => (name === "words" ? holds(row.textContent, value) : row.dataset[name] === value);
    for (const row of rows) row.hidden = !chosen.every(([name, value]) => fits(row, name, value));
    for (const section of document.querySelectorAll(".verdict")) {
      const kept = [...section.querySelectorAll("tbody tr")].filter((row) => !row.hidden).length;
      section.hidden = chosen.length > 0 && kept === 0;
      section.querySelector(".count").textContent = kept;
    }
    const left = rows.filter((row) => !row.hidden).length;
    document.getElementById("ledger-count").textContent = chosen.length ? `${left} of ${rows.length} claims.` : "";
  };
  const params = new URLSearchParams(location.search);
  for (const select of ledger.elements) if (params.has(select.name)) select.value = params.get(select.name);
  ledger.addEventListener("input", filter);
  ledger.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

// What the scripts of single pages build with.
function element(tag, content, className = "") {
  const made = document.createElement(tag);
  made.append(content);
  if (className) made.className = className;
  return made;
}

function link(text, href, className = "") {
  const made = element("a", text, className);
  made.href = href;
  return made;
}
