// The tab on what is selected: a node with its lines, its effect and its attention, or one line.

import { el } from "./dom.js";
import { PORTS, counted, number, signed } from "./format.js";
import { headView } from "./heads.js";
import { lineSign } from "./looks.js";
import { neuronsOf } from "./nodes.js";
import { section } from "./overview.js";
import { withRole } from "./roles.js";
import { directOf, factList, lineFacts, lineTitle, nodeFacts } from "./tooltip.js";
import { edgeNames } from "./view.js";

const MOST_ROWS = 12;
const MOST_NEURONS = 200;

export function makeDetails(data, view, store, actions) {
  const { sel } = store.state;
  const line = view.lines.find((other) => other.id === sel);
  if (line !== undefined) return lineDetails(data, view, line, store, actions);
  const node =
    view.nodes.find((other) => other.id === sel || other.members.includes(sel)) ?? absent(data, store, sel);
  if (node !== undefined) return nodeDetails(data, view, node, store, actions);
  return [
    el(
      "div",
      { class: "empty" },
      el("p", {}, sel === null ? "Nothing is selected." : `${sel} is not in what is shown.`),
      el(
        "p",
        { class: "quiet" },
        "Click a node or a line to see all paths through it, what it reads, what it writes and where it attends.",
      ),
    ),
  ];
}

/** A node of the graph that is not drawn. */
function absent(data, store, name) {
  if (!data.nodes.has(name)) return undefined;
  const role = Object.entries(store.roles).find(([, members]) => members.includes(name))?.[0] ?? null;
  return {
    id: name,
    members: [name],
    role,
    label: store.state.labels[name] ?? name,
    ...data.nodes.get(name),
    outside: true,
  };
}

function lineDetails(data, view, line, store, actions) {
  const names = edgeNames(data, line);
  return [
    el("h1", { class: "selected-name" }, lineTitle(view, line)),
    el(
      "div",
      { class: "actions" },
      button("from", () => actions.goTo(line.source), "Select where it comes from"),
      button("to", () => actions.goTo(line.destination), "Select where it leads"),
      button("pin", () => store.toggle("pins", line.id), "Keep its paths lit", store.state.pins.includes(line.id)),
      onlyButton(line.id, store),
    ),
    section(
      "Line",
      factList(lineFacts(view, line)),
      view.a.effects === null ? null : el("p", { class: "quiet" }, effectNote(view.a.effects)),
    ),
    section(
      counted(names.length, "edge"),
      el(
        "ul",
        { class: "names" },
        names.slice(0, 40).map((name) => el("li", {}, name)),
        names.length > 40 ? el("li", { class: "quiet" }, `and ${names.length - 40} more`) : null,
      ),
    ),
  ];
}

function effectNote({ metric, n, prompts }) {
  const change = `how the mean ${metric} over ${counted(n, `${prompts} prompt`)} changes`;
  return `When removed: ${change}, and that as a share of what separates the full model from the circuit without edges.`;
}

function nodeDetails(data, view, node, store, actions) {
  const { state } = store;
  const folds = node.kind === "layer" || node.kind === "role";
  const heads = node.members.filter((name) => data.nodes.get(name).kind === "head");
  return [
    nameEntry(node, store),
    node.outside ? el("p", { class: "quiet" }, "Not in what is shown; pin it to see it in its place.") : null,
    el(
      "div",
      { class: "actions" },
      button("pin", () => store.toggle("pins", node.id), "Keep it and its paths lit", state.pins.includes(node.id)),
      node.outside ? null : onlyButton(node.id, store),
      node.outside
        ? null
        : button(
            "hide",
            () => store.set({ hidden: [...state.hidden, node.id], sel: null }),
            "Leave it out of the picture",
          ),
      node.outside
        ? null
        : folds
          ? button("unfold", () => actions.unfold(node.id), "Show what it stands for")
          : node.kind === "head" || node.kind === "group"
            ? button(
                `fold layer ${node.layer}`,
                () => actions.fold(node.sublayer),
                "Show the heads of this layer as one node",
              )
            : null,
      node.role !== null && !folds && !node.outside
        ? button("fold role", () => actions.fold(`role:${node.role}`), "Show the nodes of this role as one")
        : null,
    ),
    roleEntry(data, node, store),
    section(
      "Node",
      factList(nodeFacts(data, view, node)),
      folds ? el("p", { class: "quiet" }, node.members.join(", ")) : null,
      effectWords(data, node),
    ),
    node.neurons ? neuronList(node.neurons) : null,
    heads.length === 1 ? headView(data, heads[0], store) : null,
    linesOf(
      view,
      "Reads from",
      view.lines.filter((line) => line.destination === node.id),
      "source",
      actions,
    ),
    linesOf(
      view,
      "Feeds",
      view.lines.filter((line) => line.source === node.id),
      "destination",
      actions,
    ),
  ];
}

/** The neurons of an MLP that the circuit keeps, by number. */
function neuronList(neurons) {
  const shown = neurons.kept.slice(0, MOST_NEURONS).join(", ");
  const more = neurons.kept.length > MOST_NEURONS ? `, and ${counted(neurons.kept.length - MOST_NEURONS, "other")}` : "";
  return section("Neurons", el("p", {}, `${neuronsOf(neurons)}: ${shown || "none"}${more}`));
}

function button(text, action, title, pressed) {
  return el(
    "button",
    { class: "small", title, onclick: action, "aria-pressed": pressed === undefined ? null : String(pressed) },
    text,
  );
}

function onlyButton(id, store) {
  const on = store.state.only === id;
  return button("only its paths", () => store.set({ only: on ? null : id }), "Draw the paths through it alone", on);
}

function nameEntry(node, store) {
  const rename = (event) => {
    const { [node.id]: _, ...labels } = store.state.labels;
    const text = event.target.value.trim();
    store.set({ labels: text && text !== node.id ? { ...labels, [node.id]: text } : labels });
  };
  return el("input", {
    class: "selected-name",
    id: "rename",
    value: node.label,
    "aria-label": "Name of this node",
    title: "Type another name for it; empty: its own",
    maxlength: 300,
    spellcheck: "false",
    onchange: rename,
  });
}

function roleEntry(data, node, store) {
  const assign = (event) => {
    const role = event.target.value.trim();
    store.set({ roles: withRole(store.roles, role, node.members) });
  };
  return el(
    "label",
    { class: "role-entry" },
    el("span", {}, "role"),
    el("input", {
      id: "role",
      value: node.role ?? "",
      list: "role-names",
      placeholder: "none",
      maxlength: 300,
      onchange: assign,
      title: "Nodes of one role share a colour and can be folded into one",
    }),
    el(
      "datalist",
      { id: "role-names" },
      Object.keys(store.roles).map((role) => el("option", { value: role })),
    ),
  );
}

function effectWords(data, node) {
  if (directOf(data, node) === null || data.direct.wrong === null || node.members.length > 1) return null;
  const i = data.direct.nodes.indexOf(node.members[0]);
  const { answer, wrong, spread } = data.direct;
  return el(
    "p",
    { class: "quiet" },
    `${signed(answer[i])} on the answer's logit, ${signed(wrong[i])} on the wrong answer's; the difference varies by ±${number(spread[i])} over the prompts.`,
  );
}

/** The lines into or out of a node, the strongest first. */
function linesOf(view, title, lines, end, actions) {
  if (!lines.length) return null;
  const size = (line) => line.size ?? 0;
  const most = view.sizes.at(-1) ?? 0;
  const sorted = [...lines].sort((x, y) => size(y) - size(x));
  const label = (id) => view.nodes.find((node) => node.id === id)?.label ?? id;
  const row = (line) =>
    el(
      "li",
      {},
      el(
        "button",
        { class: "bar-name", title: "Select this line", onclick: () => actions.goTo(line.id) },
        label(line[end]),
        line.port && el("span", { class: "quiet" }, ` ${PORTS[line.port]}`),
      ),
      el(
        "span",
        { class: "bar-track" },
        el("span", {
          class: line.score < 0 ? "bar negative" : "bar positive",
          css: {
            background: `var(--${["negative", "unsigned", "positive"][lineSign(line) + 1]})`,
            width: `${most ? (50 * size(line)) / most : 0}%`,
          },
        }),
      ),
      el("span", { class: "bar-value" }, line.score === null ? "" : signed(line.score)),
    );
  return section(
    title,
    el("ul", { class: "bars" }, sorted.slice(0, MOST_ROWS).map(row)),
    sorted.length > MOST_ROWS ? el("p", { class: "quiet" }, `and ${counted(sorted.length - MOST_ROWS, "weaker one")}`) : null,
  );
}
