// Starts the page: what the reader does changes the state, and every change of the state is shown.

import { readData } from "./data.js";
import { byId, el, fill } from "./dom.js";
import { download, drawSvg, fileName, pngOf, svgText, viewRecord } from "./exporting.js";
import { count, counted, short } from "./format.js";
import { attendsTo } from "./heads.js";
import { foldingOf, foldings } from "./folding.js";
import { bindKeys } from "./keys.js";
import { MOST_LINES } from "./lines.js";
import { Panel } from "./panel.js";
import { Search } from "./search.js";
import { Sizebar } from "./sizebar.js";
import { Stage } from "./stage.js";
import { Store } from "./state.js";
import { lineFacts, lineTitle, nodeFacts, showTip } from "./tooltip.js";
import { makeView } from "./view.js";

const data = readData(byId("data").textContent);
const store = new Store(data);
let view = null;

const actions = {
  /** Select a node or line, showing it if it is hidden, and bring it into sight. */
  goTo(id) {
    if (store.state.hidden.includes(id)) store.toggle("hidden", id);
    select(id);
    stage.focus(id);
  },
  fold(name) {
    store.set({ folded: [...new Set([...store.state.folded, name])], sel: null });
  },
  unfold(name) {
    store.set({ folded: store.state.folded.filter((other) => other !== name), sel: null });
  },
};

const stage = new Stage(data, {
  select,
  toggle: (key, id) => store.toggle(key, id),
  hover,
  zoomed: (zoom) => store.set({ zoom }),
  nextPrompt: (example) => store.set({ example }),
});
const panel = new Panel(data, store, actions);
const sizebar = new Sizebar(data, store);
const search = new Search(data, store, actions.goTo);

function select(id) {
  store.set(id === null ? { sel: null } : { sel: id, tab: "selection" });
}

function hover(thing, event) {
  if (thing === null) showTip(null);
  else if (thing.node) showTip(short(thing.node.label, 60), nodeFacts(data, view, thing.node), event);
  else {
    const attends = attendsTo(data, thing, store.state.example);
    showTip(short(lineTitle(view, thing), 80), [...lineFacts(view, thing), ...attends], event);
  }
}

// ---- showing the state ----

const SETTLED = 120; // milliseconds
const MOST_PASSING = 1000; // lines
let settling;
const STRUCTURE = ["a", "b", "n", "hidden", "folded", "roles", "labels", "ports", "stable", "pins", "only"];

/** Show what has changed; while it keeps changing, the strongest lines alone, and the rest when it has stopped. */
function show(state, changed, passing = false) {
  if (changed.has("theme")) applyTheme(state);
  const structure = STRUCTURE.some((key) => changed.has(key));
  if (structure) {
    view = makeView(data, state, store.roles, passing ? MOST_PASSING : MOST_LINES);
    stage.show(view, state, store.roles, passing);
    search.show(view);
    sizebar.show(view);
    byId("only-off").hidden = view.only === null;
    byId("only-off").textContent = `only paths through ${short(view.only ?? "", 30)} ×`;
    byId("left-out").hidden = !view.leftOut || view.only !== null;
    fill(
      byId("left-out"),
      `the ${count(view.lines.length)} strongest lines drawn, ${counted(view.leftOut, "weaker one")} left out`,
    );
  } else if (changed.has("sel") || changed.has("theme")) {
    stage.restyle(state, store.roles);
    if (changed.has("theme")) sizebar.draw();
  }
  if (!structure && changed.has("example")) stage.showPrompt(state);
  if (structure || ["sel", "tab", "example", "theme"].some((key) => changed.has(key))) {
    clearTimeout(settling);
    if (passing) {
      settling = setTimeout(() => show(store.state, changed), SETTLED);
      return;
    }
    panel.show(view);
    byId("status").textContent = `${counted(view.edgesA, "edge")}, ${counted(view.nodes.length, "node")} shown`;
  }
  showControls(state);
}

function showControls(state) {
  byId("circuit").value = String(state.a);
  byId("compare").value = String(state.b);
  byId("ports").checked = state.ports;
  const ways = Object.keys(foldings(data, store.roles));
  const way = foldingOf(data, store.roles, state.folded) ?? "some";
  fill(
    byId("folding"),
    [...ways, ...(way === "some" ? ["some"] : [])].map((name) => el("option", { value: name }, name)),
  );
  byId("folding").value = way;
  document.body.classList.toggle("wide", state.wide);
  byId("wide").setAttribute("aria-pressed", String(state.wide));
  byId("stable").checked = state.stable;
}

function applyTheme(state) {
  if (state.theme === null) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
}

function isDark() {
  return store.state.theme === null
    ? matchMedia("(prefers-color-scheme: dark)").matches
    : store.state.theme === "dark";
}

// ---- controls ----

const names = data.circuits.map((circuit, i) => [i, short(circuit.name, 40)]);
fill(
  byId("circuit"),
  names.map(([i, name]) => el("option", { value: i }, name)),
);
fill(
  byId("compare"),
  el("option", { value: -1 }, "nothing"),
  names.map(([i, name]) => el("option", { value: i }, name)),
);
byId("compare-box").hidden = data.circuits.length < 2;
byId("circuit").disabled = data.circuits.length < 2;
byId("title").textContent = short(data.title, 120);
byId("title").title = data.title;

byId("circuit").addEventListener("change", (event) => {
  const a = Number(event.target.value);
  store.set({ a, b: store.state.b === a ? -1 : store.state.b });
});
byId("only-off").addEventListener("click", () => store.set({ only: null }));
byId("compare").addEventListener("change", (event) => {
  const b = Number(event.target.value);
  store.set({ b: b === store.state.a ? -1 : b });
});
byId("folding").addEventListener("change", (event) => {
  store.set({ folded: foldings(data, store.roles)[event.target.value] ?? store.state.folded, sel: null });
});
byId("wide").addEventListener("click", () => store.set({ wide: !store.state.wide }));
byId("ports").addEventListener("change", (event) => store.set({ ports: event.target.checked }));
byId("stable").addEventListener("change", (event) => store.set({ stable: event.target.checked }));
byId("theme").addEventListener("click", () => store.set({ theme: isDark() ? "light" : "dark" }));
byId("fit").addEventListener("click", () => stage.fit());
byId("zoom-in").addEventListener("click", () => stage.zoomBy(1.35));
byId("zoom-out").addEventListener("click", () => stage.zoomBy(1 / 1.35));
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("help-close").addEventListener("click", () => byId("help").close());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(store.state, new Set(["theme"])));

const exporters = {
  svg: () =>
    download(
      new Blob([svgText(drawSvg(data, view, stage, store.roles))], { type: "image/svg+xml" }),
      fileName(data.title, "svg"),
    ),
  png: async () => download(await pngOf(drawSvg(data, view, stage, store.roles)), fileName(data.title, "png")),
  json: () =>
    download(
      new Blob([JSON.stringify(viewRecord(data, view, store.state, store.roles), null, 1)], {
        type: "application/json",
      }),
      fileName(data.title, "json"),
    ),
};
for (const [format, save] of Object.entries(exporters)) {
  byId(`save-${format}`).addEventListener("click", () => {
    byId("save").open = false;
    save();
  });
}
document.addEventListener("click", (event) => {
  if (!byId("save").contains(event.target)) byId("save").open = false;
});

bindKeys({ stage, store, actions });

// ---- start ----

applyTheme(store.state);
const start = store.state;
show(start, new Set(Object.keys(start).filter((key) => key !== "zoom")));
if (start.zoom !== null) stage.goTo(start.zoom);
store.listen(show);
window.addEventListener("hashchange", () => stage.goTo(store.state.zoom));
document.documentElement.dataset.ready = "true";
