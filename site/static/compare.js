// Two to five techniques side by side. The address carries the choice: compare.html#bed=digits&t=deepcache,ddim
"use strict";

const MOST = 5;
const form = document.getElementById("choices");
const { bed: beds, add } = form.elements;
let chosen = [];

if (Object.keys(ATLAS.beds).length) start();
else document.getElementById("message").textContent = "No result yet.";

function start() {
  beds.replaceChildren(...Object.entries(ATLAS.beds).map(([name, bed]) => new Option(`${bed.title} (${bed.scale} scale)`, name)));
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  beds.addEventListener("change", write);
  add.addEventListener("change", () => { chosen.push(add.value); write(); });
  window.addEventListener("hashchange", read);
  read();
}

function read() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (ATLAS.beds[asked.get("bed")]) beds.value = asked.get("bed");
  else if (ATLAS.beds.digits) beds.value = "digits";
  const wanted = (asked.get("t") ?? "").split(",").filter(Boolean);
  chosen = [...new Set(wanted)].filter((id) => ATLAS.techniques[id]).slice(0, MOST);
  show();
}

function write() {
  location.hash = `bed=${beds.value}&t=${chosen.join(",")}`;
  show();
}

function show() {
  const bed = ATLAS.beds[beds.value];
  const rows = chosen.map((id) => bed.rows.find((row) => row.id === id) ?? null);
  const there = bed.rows.filter((row) => row.id && !chosen.includes(row.id));
  add.replaceChildren(new Option("a technique …", ""), ...families(there));
  add.disabled = chosen.length >= MOST;
  const missing = chosen.filter((_, index) => !rows[index]).map((id) => ATLAS.techniques[id].name);
  document.getElementById("message").textContent = [
    chosen.length < 2 ? "Choose two to five techniques." : chosen.length === MOST ? "Five is the most that stands side by side." : "",
    missing.length ? `No result on ${bed.title}: ${missing.join(", ")}.` : "",
  ].filter(Boolean).join(" ");
  const table = document.getElementById("comparison");
  if (!chosen.length) {
    table.tHead.replaceChildren();
    table.tBodies[0].replaceChildren();
    return;
  }
  table.tHead.replaceChildren(line("Technique", chosen.map(heading), "th"));
  const known = chosen.map((id) => ATLAS.techniques[id]);
  table.tBodies[0].replaceChildren(
    line("Idea", known.map((one) => element("span", one.idea, "prose"))),
    line("Family", known.map((one) => `${one.area}, ${one.family}`)),
    line("Claims", known.map(claims)),
    line("Meant to save", known.map((one) => one.saves.join(", "))),
    line("Changes base training", known.map((one) => (one.trains ? "yes" : "no"))),
    line("Can be combined", chosen.map(combines)),
    ...bed.metrics.map((key) => line(
      `${ATLAS.metrics[key].title} (${ATLAS.metrics[key].unit}), ${ATLAS.metrics[key].better} is better`, rows.map((row) => number(row, row?.qualities[key])))),
    ...Object.entries({ evaluations: "evaluations", macs: "MACs" }).map(([axis, word]) => line(
      `Difference to its control at equal ${word}`, rows.map((row) => gap(row, row?.gaps?.[axis])))),
    ...bed.axes.map((axis) => line(ATLAS.costs[axis], rows.map((row) => number(row, row?.costs[axis])))),
    ...(rows.some((row) => row?.picture) ? [line("Samples from the same seeds", rows.map(picture))] : []),
    line("Basis", rows.map((row) => (row ? `${bed.basis}${row.stale ? `; stale: ${row.stale}` : ""}` : "–"))),
  );
}

// The techniques to choose from, family by family.
function families(rows) {
  const groups = new Map();
  for (const row of rows) {
    const { area, family } = ATLAS.techniques[row.id], title = `${area}, ${family}`;
    if (!groups.has(title)) groups.set(title, Object.assign(document.createElement("optgroup"), { label: title }));
    groups.get(title).append(new Option(row.name, row.id));
  }
  return groups.values();
}

function line(title, cells, tag = "td") {
  const made = document.createElement("tr");
  const name = element("th", title);
  name.scope = tag === "th" ? "col" : "row";
  made.append(name, ...cells.map((content) => {
    const cell = element(tag, content);
    if (tag === "th") cell.scope = "col";
    return cell;
  }));
  return made;
}

function heading(id) {
  const holder = element("span", link(ATLAS.techniques[id].name, `t/${id}.html`));
  const away = element("button", "remove", "away");
  away.type = "button";
  away.setAttribute("aria-label", `Remove ${ATLAS.techniques[id].name}`);
  away.addEventListener("click", () => { chosen = chosen.filter((other) => other !== id); write(); });
  holder.append(" ", away);
  return holder;
}

function claims(one) {
  const list = Object.entries(one.claims).filter(([, count]) => count).map(([status, count]) => `${count} ${status}`);
  return list.length ? `${list.join(", ")}${one.scales.length ? `; ${one.scales.join(" and ")} scale` : ""}` : "none";
}

function combines(id) {
  const refused = Object.entries(ATLAS.techniques[id].refused);
  const against = refused.flatMap(([why, others]) =>
    others.filter((other) => chosen.includes(other)).map((other) => `${ATLAS.techniques[other].name} (${why.replaceAll("`", "")})`));
  if (against.length) return `not with ${against.join(", ")}`;
  return chosen.length > 1 ? "with all of these" : "–";
}

function number(row, found) {
  if (!found) return "–";
  const shown = link(found.text, row.record, "num");
  shown.title = found.basis;
  const holder = element("span", shown);
  if (found.interval) holder.append(" ", element("span", found.interval, "ci"));
  return holder;
}

function gap(row, found) {
  const holder = number(row, found);
  if (found) holder.append(" ", element("span", found.word, `says ${found.word.replaceAll(" ", "-")}`));
  return holder;
}

function picture(row) {
  if (!row?.picture) return "–";
  const image = document.createElement("img");
  Object.assign(image, row.picture, { loading: "lazy", decoding: "async" });
  return element("span", image, "samples");
}
