// The tab on the whole circuit: what the looks mean, what is shown, what nodes write to the answer, and who made it.

import { el } from "./dom.js";
import { count, counted, number, short, signed } from "./format.js";
import { isRanked, legendOf, legendSample, palette, SIDES } from "./looks.js";
import { factList } from "./tooltip.js";

const MOST_BARS = 14;

export function makeOverview(data, view, store, actions) {
  const colours = palette();
  const legend = legendOf(view, store.roles, colours);
  return [
    legend.length
      ? section(
          "Legend",
          el(
            "ul",
            { class: "legend" },
            legend.map((entry) => el("li", {}, legendSample(entry, colours), short(entry.meaning, 60))),
          ),
          view.b === null && view.sizes.length
            ? el(
                "p",
                { class: "quiet" },
                isRanked(view)
                  ? `Width and opacity go by the rank of the score's size; the largest is ${number(view.sizes.at(-1))}.`
                  : `Width is the size of the score; the widest is ${number(view.sizes.at(-1))}.`,
              )
            : null,
        )
      : null,
    section("Shown", factList(shownFacts(data, view, store.state)), hiddenList(store)),
    data.direct === null
      ? null
      : section(`Direct effect on the ${data.direct.target}'s logit`, directChart(data, view, store, actions)),
    section(view.b === null ? "Made by" : "A was made by", factList(Object.entries(view.a.facts))),
    view.b === null ? null : section("B was made by", factList(Object.entries(view.b.facts))),
    data.notes.length
      ? section(
          "Notes",
          data.notes.map((note) => el("p", { class: "quiet" }, note)),
        )
      : null,
    data.rolesFrom && store.state.roles === null
      ? section("Roles", el("p", { class: "quiet" }, data.rolesFrom))
      : null,
  ];
}

export function section(title, ...children) {
  return el("section", {}, el("h2", {}, title), children);
}

function shownFacts(data, view, state) {
  const chosen = (circuit, n) =>
    n === null || circuit.order === null
      ? `${circuit.name}, as found`
      : `${circuit.name}, the ${count(n)} that rank highest, ${circuit.rankedBy}`;
  const facts = [[view.b === null ? "circuit" : "A", chosen(view.a, state.n)]];
  if (view.b !== null) facts.push(["B", chosen(view.b, view.nB)]);
  const drawn = view.a.unit === "line" ? "lines" : "edges";
  facts.push([view.b === null ? drawn : `${drawn} of A`, `${count(view.edgesA)} of ${count(data.total)}`]);
  if (view.b !== null) {
    facts.push(["edges of B", count(view.edgesB)]);
    facts.push(
      [SIDES.both, count(view.shared)],
      [SIDES.a, count(view.edgesA - view.shared)],
      [SIDES.b, count(view.edgesB - view.shared)],
    );
  }
  facts.push(["nodes", count(view.nodes.length)]);
  if (view.leftOut)
    facts.push(["left out", `${counted(view.leftOut, "weaker line")}; ${count(view.lines.length)} drawn`]);
  return facts;
}

function hiddenList(store) {
  const { hidden } = store.state;
  if (!hidden.length) return null;
  return el(
    "div",
    { class: "chips" },
    el("span", { class: "quiet" }, "hidden:"),
    hidden.map((name) =>
      el(
        "button",
        { class: "chip", title: "Show again", onclick: () => store.toggle("hidden", name) },
        `${name} ×`,
      ),
    ),
    el("button", { class: "link", id: "show-all", onclick: () => store.set({ hidden: [] }) }, "show all"),
  );
}

/** Bars for the nodes that write most towards the answer, or against it. */
function directChart(data, view, store, actions) {
  const { nodes, answer, wrong, prompts } = data.direct;
  const values = nodes.map((name, i) => ({ name, value: answer[i] - (wrong?.[i] ?? 0) }));
  const shown = values.sort((x, y) => Math.abs(y.value) - Math.abs(x.value)).slice(0, MOST_BARS);
  const most = Math.max(1e-12, ...shown.map((x) => Math.abs(x.value)));
  const drawn = new Set(view.nodes.flatMap((node) => node.members));
  const against = wrong === null ? "" : " less that of the wrong answer's";
  return [
    el(
      "ul",
      { class: "bars" },
      shown.map(({ name, value }) =>
        el(
          "li",
          {},
          el(
            "button",
            {
              class: drawn.has(name) ? "bar-name" : "bar-name outside",
              title: drawn.has(name) ? "Select" : "Not in what is shown",
              onclick: () => actions.goTo(name),
            },
            store.state.labels[name] ?? name,
          ),
          el(
            "span",
            { class: "bar-track" },
            el("span", {
              class: value < 0 ? "bar negative" : "bar positive",
              css: { width: `${(50 * Math.abs(value)) / most}%` },
            }),
          ),
          el("span", { class: "bar-value" }, signed(value)),
        ),
      ),
    ),
    el(
      "p",
      { class: "quiet" },
      `What each node writes to the ${data.direct.target}'s logit by itself${against}; mean over ${counted(prompts, "prompt")}.`,
    ),
  ];
}
