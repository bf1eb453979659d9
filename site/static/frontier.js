// The frontier of the chosen bed, quality and cost. Numbers and standings come from data/atlas.js; nothing is computed
// here but where a point is drawn. Without this script the page shows still charts and one table for all costs.
"use strict";

const form = document.getElementById("choices");
const live = document.getElementById("live");
const { bed: beds, metric: metrics, cost: costs } = form.elements;
const ORDER = ["front", "tied", "beaten", "one value"];
const WORDS = { front: "on the front", tied: "ties with", beaten: "beaten by", "one value": "one value: no interval" };
let drawing = 0;

if (Object.keys(ATLAS.beds).length) start();

function start() {
  fill(beds, Object.entries(ATLAS.beds).map(([name, bed]) => [name, `${bed.title} (${bed.scale} scale)`]));
  for (const still of document.querySelectorAll(".still")) still.hidden = true;
  form.hidden = live.hidden = false;
  read();
  form.addEventListener("change", () => { offer(); write(); }); // the new address draws
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
}

// What the address asks for, as far as it is there.
function read() {
  const asked = new URLSearchParams(location.hash.slice(1));
  choose(beds, asked.get("bed") ?? "digits");
  offer();
  choose(metrics, asked.get("metric"));
  choose(costs, asked.get("cost"));
  show();
}

function write() {
  location.hash = new URLSearchParams({ bed: beds.value, metric: metrics.value, cost: costs.value });
}

// The metrics and costs that the bed has; what was chosen stays chosen where it is among them.
function offer() {
  const bed = ATLAS.beds[beds.value];
  const kept = [metrics.value || bed.metric, costs.value];
  fill(metrics, bed.metrics.map((key) => [key, `${ATLAS.metrics[key].title} (${ATLAS.metrics[key].better} is better)`]));
  fill(costs, bed.axes.map((axis) => [axis, ATLAS.costs[axis]]));
  choose(metrics, bed.metrics.includes(kept[0]) ? kept[0] : bed.metric);
  choose(costs, kept[1]);
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

function choose(select, value) {
  if ([...select.options].some((option) => option.value === value)) select.value = value;
}

function show() {
  const bed = ATLAS.beds[beds.value], metric = metrics.value, cost = costs.value;
  const places = bed.standings[`${metric} ${cost}`].map(([row, standing, by]) => (
    { row: bed.rows[row], standing, by: by === null ? null : bed.rows[by] }));
  const quality = ATLAS.metrics[metric];
  document.getElementById("live-title").textContent =
    `${quality.title} against ${lower(ATLAS.costs[cost])} on ${bed.title}`;
  document.getElementById("basis").textContent = `${capital(bed.scale)} scale: ${bed.basis}. `
    + `${quality.title} in ${places[0]?.row.qualities[metric].basis.split(";")[0] ?? "no unit"}, ${quality.better} is better. `
    + "The line is the baseline; bars are 95 % intervals.";
  document.querySelector("[data-cost]").textContent = ATLAS.costs[cost];
  document.querySelector("[data-quality]").textContent = `${quality.title}, ${quality.better} is better`;
  list(places, metric, cost);
  draw(places, metric, cost);
}

function list(places, metric, cost, kept = null, points = []) {
  const left = places.filter((_, index) => kept === null || inside(points[index], kept));
  const shown = ORDER.flatMap((standing) => left.filter((place) => place.standing === standing));
  document.querySelector("#standing tbody").replaceChildren(...shown.map(({ row, standing, by }) => {
    const line = document.createElement("tr");
    const name = element("th", named(row));
    name.scope = "row";
    line.append(name, number(row.costs[cost], row), number(row.qualities[metric], row));
    const stands = element("td", element("span", WORDS[standing], `stands ${standing.replace(" ", "-")}`));
    if (by) stands.append(" ", named(by));
    line.append(stands);
    return line;
  }));
  document.getElementById("kept").textContent = kept === null ? "" : `${shown.length} of ${places.length} rows.`;
}

function inside(point, kept) {
  const within = (value, ends) => !ends || (value >= Math.min(...ends) && value <= Math.max(...ends));
  return within(point.at, kept.x) && within(point.quality, kept.y);
}

function named(row) {
  if (!row.id) return element("code", row.cell);
  return link(row.name, `t/${row.id}.html`);
}

function number(found, row) {
  const shown = link(found.text, row.record, "num");
  shown.title = found.basis;
  const cell = element("td", shown, "n");
  if (found.interval) cell.append(" ", element("span", found.interval, "ci"));
  return cell;
}

function draw(places, metric, cost) {
  const turn = ++drawing;
  const points = apart(places.map(({ row, standing, by }) => point(row, standing, by, metric, cost)));
  const holder = document.getElementById("chart");
  vegaEmbed(holder, chart(points, metric, cost), { actions: false, renderer: "svg" }).then(({ view }) => {
    if (turn !== drawing) return view.finalize();
    const bounds = places.length ? `${places.length} rows, all in the table below.` : "";
    holder.setAttribute("aria-label", `${document.getElementById("live-title").textContent}: ${bounds}`);
    holder.querySelector("svg").setAttribute("aria-hidden", "true"); // one name for all of it; the table says the rest
    view.addSignalListener("brush", (_, brush) => {
      const ends = { x: brush.at, y: brush.quality };
      list(places, metric, cost, ends.x || ends.y ? ends : null, points);
    });
  });
}

function point(row, standing, by, metric, cost) {
  const quality = row.qualities[metric], spent = row.costs[cost];
  return {
    name: row.name, kind: row.id ? "technique" : "baseline", standing,
    stands: by ? `${WORDS[standing]} ${by.name}` : WORDS[standing],
    cost: spent.value, quality: quality.value, low: quality.low ?? quality.value, high: quality.high ?? quality.value,
    [ATLAS.metrics[metric].title]: quality.interval ? `${quality.text} (${quality.interval})` : quality.text,
    [ATLAS.costs[cost]]: spent.text,
    href: row.id ? `t/${row.id}.html` : row.record,
  };
}

// Techniques of equal cost side by side, so that their bars can be told apart; `at` is where they are drawn.
function apart(points) {
  const costs = points.map((p) => p.cost);
  const room = 0.012 * (Math.max(...costs) - Math.min(...costs));
  for (const p of points) {
    const column = points.filter((other) => other.kind === "technique" && other.cost === p.cost);
    column.sort((a, b) => a.quality - b.quality);
    const place = p.kind === "technique" ? column.indexOf(p) % 5 - (Math.min(column.length, 5) - 1) / 2 : 0;
    p.at = Math.min(...costs) > 0 ? p.cost * 1.018 ** place : p.cost + room * place;
  }
  return points;
}

// A Vega-Lite chart: the baseline as a line with its band, techniques as points with bars, the front named.
function chart(points, metric, cost) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const [ink, soft, rule, accent, paper] = ["ink", "soft", "rule", "accent", "paper"].map(colour);
  const quality = ATLAS.metrics[metric];
  const log = (values) => (values.every((value) => value > 0) ? "log" : "linear");
  const x = {
    field: "at", type: "quantitative", title: ATLAS.costs[cost],
    scale: { type: log(points.map((p) => p.cost)), nice: false, padding: 14 }, axis: { format: "~s", grid: false },
  };
  const kind = log(points.flatMap((p) => [p.low, p.quality]));
  const scale = { type: kind, nice: false, padding: 14, ...(kind === "linear" && { zero: false }) };
  const y = { field: "quality", type: "quantitative", title: `${quality.title}, ${quality.better} is better`, scale };
  const only = (test) => ({ transform: [{ filter: test }] });
  const tooltip = ["name", quality.title, ATLAS.costs[cost], "stands"].map((field) => ({ field, type: "nominal" }));
  const ends = { y: { ...y, field: "low" }, y2: { field: "high" } };
  const by = (front, tied, other) => ({
    condition: [{ test: "datum.standing === 'front'", value: front }, { test: "datum.standing === 'tied'", value: tied }],
    value: other,
  });
  const named = only("datum.kind === 'technique' && datum.standing === 'front'"), text = { field: "name" };
  const label = { type: "text", align: "left", dx: 8, dy: -7, fontSize: 12 };
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    width: "container", height: Math.min(480, Math.max(320, innerHeight * 0.55)), background: null,
    autosize: { type: "fit", contains: "padding", resize: true },
    data: { values: points },
    encoding: { x },
    layer: [
      { ...only("datum.kind === 'baseline'"), mark: { type: "area", color: soft, opacity: 0.16 }, encoding: ends },
      { ...only("datum.kind === 'baseline'"), mark: { type: "line", color: soft, point: { color: soft } },
        encoding: { y, order: { field: "at" }, tooltip } },
      { ...only("datum.kind === 'technique'"), mark: { type: "rule", color: accent, opacity: 0.5 }, encoding: ends },
      { ...only("datum.kind === 'technique'"),
        params: [{ name: "brush", select: { type: "interval", encodings: ["x", "y"] } }],
        mark: { type: "point", filled: true, size: 85, opacity: 1, strokeWidth: 1.6, cursor: "pointer" },
        encoding: {
          y, tooltip, href: { field: "href" }, shape: by("triangle-up", "circle", "triangle-down"),
          fill: by(accent, paper, paper), stroke: { value: accent },
        } },
      { ...named, mark: { ...label, stroke: paper, strokeWidth: 4, strokeJoin: "round" }, encoding: { y, text } },
      { ...named, mark: { ...label, color: ink }, encoding: { y, text } },
    ],
    config: {
      font: style.getPropertyValue("--sans"), view: { stroke: null },
      axis: { labelColor: soft, titleColor: ink, tickColor: rule, domainColor: soft, gridColor: rule, titleFontWeight: 400,
              labelFontSize: 12, titleFontSize: 12, tickCount: 7 },
    },
  };
}

function lower(text) {
  return /^[A-Z]{2}/.test(text) ? text : text[0].toLowerCase() + text.slice(1);
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}
