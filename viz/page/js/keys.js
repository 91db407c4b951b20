// The keyboard: what each key does, in one place, which the help also shows.

import { byId, el, fill } from "./dom.js";

const ARROWS = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" };
const HELP = [
  ["/", "search"],
  ["Tab", "to the picture, the panel and the slider"],
  ["← ↑ ↓ →", "in the picture: from node to node; on the slider: size"],
  ["Enter", "select the node: all paths through it are lit"],
  ["P", "pin it: its paths stay lit"],
  ["H", "hide it"],
  ["F", "fold its layer into one node, or unfold it"],
  ["M", "nothing but the picture, or all again"],
  ["N", "name it"],
  ["G", "give it a role"],
  ["+ − 0", "zoom in, out, to the whole picture"],
  ["Esc", "select nothing; again: unpin all"],
  ["?", "this help"],
];

export function bindKeys({ stage, store, actions }) {
  fill(
    byId("help-keys"),
    HELP.map(([key, what]) => [
      el(
        "dt",
        {},
        key.split(" ").map((one) => el("kbd", {}, one)),
      ),
      el("dd", {}, what),
    ]),
  );
  const node = () => document.activeElement?.dataset?.node ?? null;
  const edit = (id) => {
    store.set({ sel: node(), tab: "selection" });
    byId(id)?.focus();
    byId(id)?.select();
  };
  const onNode = {
    Enter: (id) => store.set({ sel: id, tab: "selection" }),
    " ": (id) => store.set({ sel: id, tab: "selection" }),
    p: (id) => store.toggle("pins", id),
    h: (id) => {
      store.set({ hidden: [...store.state.hidden, id], sel: null });
      stage.nodeLayer.querySelector('[tabindex="0"]')?.focus();
    },
    f: (id) => {
      const shown = stage.view.nodes.find((other) => other.id === id);
      if (shown.kind === "layer" || shown.kind === "role") actions.unfold(id);
      else if (shown.kind === "head" || shown.kind === "group") {
        actions.fold(shown.sublayer);
        stage.focus(shown.sublayer);
      }
    },
    n: () => edit("rename"),
    g: () => edit("role"),
  };
  const anywhere = {
    "/": () => byId("search").focus(),
    "?": () => byId("help").showModal(),
    "+": () => stage.zoomBy(1.35),
    "=": () => stage.zoomBy(1.35),
    "-": () => stage.zoomBy(1 / 1.35),
    0: () => stage.fit(),
    m: () => store.set({ wide: !store.state.wide }),
    Escape: () => store.set(store.state.only !== null ? { only: null } : store.state.sel === null ? { pins: [] } : { sel: null }),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const typing = event.target.matches?.("input:not([type=range]):not([type=checkbox]), select, textarea");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const id = node();
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (id !== null && key in ARROWS) stage.step(id, ARROWS[key]);
    else if (id !== null && key in onNode) onNode[key](id);
    else if (key in anywhere) anywhere[key]();
    else return;
    event.preventDefault();
  });
}
