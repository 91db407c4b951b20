// What is drawn: the chosen edges between the nodes that are left when some are folded into one and some hidden.

import { edgeName } from "./data.js";
import { folding } from "./folding.js";
import { collectLines } from "./lines.js";
import { chooseEdges, countEdges, countUnits } from "./select.js";

/** The nodes and at most so many lines of a state, without places. */
export function makeView(data, state, roles, most) {
  const a = data.circuits[state.a];
  const b = state.b < 0 ? null : data.circuits[state.b];
  const maskA = chooseEdges(data, a, state.n);
  const nB = b === null || b.unit === a.unit ? state.n : null; // edges are no measure of nodes: as it was found
  const maskB = b === null ? null : chooseEdges(data, b, nB);
  const roleOf = new Map();
  for (const [role, names] of Object.entries(roles)) for (const name of names) roleOf.set(name, role);
  const shownAs = folding(data, state, roleOf);
  const hidden = new Set(state.hidden);
  const { lines, leftOut } = collectLines(data, state, { a, b, maskA, maskB, most }, shownAs, hidden);
  const view = {
    a,
    b,
    nB,
    edgesA: countEdges(maskA),
    unitsA: countUnits(data, a, maskA),
    edgesB: maskB === null ? 0 : countEdges(maskB),
    shared: maskB === null ? 0 : maskA.reduce((n, kept, e) => n + (kept & maskB[e]), 0),
    lines,
    leftOut,
    sizes: Float64Array.from(lines.map((line) => line.size).filter((size) => size !== null)).sort(),
    nodes: collectNodes(data, state, lines, roleOf, shownAs, hidden),
  };
  return onlyPaths(data, view, state.only);
}

/** Of a view, the paths through a node or line; all of it where that is not drawn. */
function onlyPaths(data, view, through) {
  const paths = through === null ? null : pathsThrough(data, view, through);
  if (paths === null) return { ...view, only: null };
  return {
    ...view,
    only: through,
    lines: view.lines.filter((line) => paths.lines.has(line)),
    nodes: view.nodes.filter((node) => paths.nodes.has(node.id)),
  };
}

function collectNodes(data, state, lines, roleOf, shownAs, hidden) {
  const names = new Set(lines.flatMap((line) => [line.source, line.destination]));
  for (const name of state.pins) if (data.nodes.has(name)) names.add(shownAs(name));
  for (const name of [...data.sources.slice(0, data.inputs), ...data.outputs]) names.add(shownAs(name)); // the ends are always there
  const members = new Map();
  for (const name of data.nodes.keys()) {
    const id = shownAs(name);
    if (!names.has(id) || hidden.has(id)) continue;
    if (members.has(id)) members.get(id).push(name);
    else members.set(id, [name]);
  }
  const nodes = [...members].map(([id, inside]) => {
    const role = id.startsWith("role:") ? id.slice(5) : inside.length === 1 ? roleOf.get(inside[0]) : undefined;
    const where = placeOf(data, id, inside);
    return {
      id,
      members: inside,
      role: role ?? null,
      neurons: inside.length === 1 ? (data.nodes.get(inside[0]).neurons ?? null) : null,
      label: state.labels[id] ?? (id.startsWith("role:") ? id.slice(5) : (data.nodes.get(id)?.label ?? id)),
      ...where,
    };
  });
  return nodes.sort((x, y) => x.row - y.row || x.column - y.column || (x.id < y.id ? -1 : 1));
}

/** Row and column: as the data has them; of several as one, those of the first or, for a role, the row of the middle one. */
function placeOf(data, id, members) {
  const rows = members.map((name) => data.nodes.get(name)).sort((x, y) => x.row - y.row);
  const { kind, layer, sublayer, row, column, place } = rows[0];
  if (data.nodes.has(id)) return { kind, layer, sublayer, row, column, place };
  if (!id.startsWith("role:")) return { kind: "layer", layer, sublayer, row, column: 0, place };
  const middle = rows[Math.floor((rows.length - 1) / 2)];
  return { kind: "role", layer: middle.layer, sublayer: null, row: middle.row, column: 1e6, place: middle.place };
}

/** Lines and nodes on the paths through a node or line, up and down; null if it is not drawn. */
export function pathsThrough(data, view, selected) {
  const into = grouped(view.lines, "destination"),
    out = grouped(view.lines, "source");
  const groupsOf = new Map(),
    headsOf = new Map();
  for (const node of data.nodes.values()) {
    if (node.kind !== "group") continue;
    headsOf.set(node.name, node.heads);
    for (const head of node.heads) groupsOf.set(head, [...(groupsOf.get(head) ?? []), node.name]);
  }
  const line = view.lines.find((other) => other.id === selected);
  const node = view.nodes.find((other) => other.id === selected || other.members.includes(selected));
  if (line === undefined && node === undefined) return null;
  const lines = new Set(line === undefined ? [] : [line]);
  const nodes = new Set();
  const walk = (start, next, end, others) => {
    const queue = [start],
      seen = new Set([start]);
    while (queue.length) {
      const here = queue.pop();
      nodes.add(here);
      const further = [...(others.get(here) ?? [])];
      for (const edge of next.get(here) ?? []) {
        lines.add(edge);
        further.push(edge[end]);
      }
      for (const name of further) {
        if (!seen.has(name)) {
          seen.add(name);
          queue.push(name);
        }
      }
    }
  };
  walk(line === undefined ? node.id : line.source, into, "source", groupsOf);
  walk(line === undefined ? node.id : line.destination, out, "destination", headsOf);
  return { lines, nodes };
}

function grouped(lines, end) {
  const found = new Map();
  for (const line of lines) {
    if (found.has(line[end])) found.get(line[end]).push(line);
    else found.set(line[end], [line]);
  }
  return found;
}

/** The graph's edges that a line stands for, by name. */
export function edgeNames(data, line) {
  return line.edges.map((edge) => edgeName(data, edge));
}
