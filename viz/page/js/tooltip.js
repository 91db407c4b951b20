// What is known of a line or node, in a few words beside the pointer, and the words for it elsewhere.

import { byId, el, fill } from "./dom.js";
import { PORTS, count, counted, number, percent, signed } from "./format.js";
import { neuronsOf } from "./nodes.js";
import { SIDES } from "./looks.js";

/** Facts of a line: [name, value] pairs. */
export function lineFacts(view, line) {
  const { a, b } = view;
  const facts = [];
  if (line.edges.length > 1) facts.push(["stands for", counted(line.edges.length, "edge")]);
  if (line.side) facts.push(["in", SIDES[line.side]]);
  if (line.score !== null) {
    const what = line.edges.length > 1 ? "score, summed" : "score";
    facts.push([b === null ? what : `${what} in A`, signed(line.score)]);
    if (Number.isFinite(line.rank) && line.rank < 0xffffffff) {
      facts.push([line.edges.length > 1 ? "best rank" : "rank", `${count(line.rank)} of ${count(a.order.length)}`]);
    }
  }
  if (line.sign) facts.push([b === null ? "measured" : "measured in A", line.sign > 0 ? "helps" : "hinders"]);
  if (line.otherScore !== null) facts.push(["score in B", signed(line.otherScore)]);
  for (const [circuit, inside, where] of [
    [a, line.inA, b === null ? "" : " from A"],
    [b, line.inB, " from B"],
  ]) {
    const effect = circuit !== null && inside ? effectOf(circuit, line) : null;
    if (effect !== null) facts.push([`when removed${where}`, effect]);
  }
  return facts;
}

/** What the metric does when a line's only edge is removed from a circuit, in words; null if nothing was measured. */
function effectOf({ effects }, line) {
  if (effects === null) return null;
  if (line.edges.length > 1) return "measured for single edges only";
  const change = effects.of.get(line.edges[0]);
  if (change === undefined) return "not measured";
  const [full, empty] = effects.values;
  const share =
    full === null || empty === null || full === empty ? "" : ` (${percent(change / Math.abs(full - empty))})`;
  return `${effects.metric} ${signed(change)}${share}`;
}

/** A line's name in words. */
export function lineTitle(view, line) {
  const label = (id) => view.nodes.find((node) => node.id === id)?.label ?? id;
  return `${label(line.source)} → ${label(line.destination)}${line.port ? ` (${PORTS[line.port]})` : ""}`;
}

export function nodeFacts(data, view, node) {
  const facts = [];
  const kinds = {
    input: "embedding",
    head: "attention head",
    group: "keys or values of a group of heads",
    mlp: "MLP",
    logits: "output",
    layer: "heads of a layer",
    role: "role",
  };
  facts.push(["is", kinds[node.kind] + (node.members.length > 1 ? ` (${count(node.members.length)})` : "")]);
  if (node.label !== node.id && node.kind !== "role") facts.push(["named by you; is", node.id]);
  if (node.role !== null) facts.push(["role", node.role]);
  if (node.neurons) facts.push(["keeps", neuronsOf(node.neurons)]);
  facts.push(["reads from", counted(view.lines.filter((line) => line.destination === node.id).length, "line")]);
  facts.push(["feeds", counted(view.lines.filter((line) => line.source === node.id).length, "line")]);
  const effect = directOf(data, node);
  if (effect !== null) facts.push([`direct effect on ${data.direct.target}`, signed(effect)]);
  return facts;
}

/** The direct effect on the answer's logit of all that a node stands for; null if unknown. */
export function directOf(data, node) {
  if (data.direct === null) return null;
  const places = node.members.map((name) => data.direct.nodes.indexOf(name)).filter((i) => i >= 0);
  if (!places.length) return null;
  const value = (i) => data.direct.answer[i] - (data.direct.wrong?.[i] ?? 0);
  return places.reduce((sum, i) => sum + value(i), 0);
}

/** A definition list of facts. */
export function factList(facts) {
  return el(
    "dl",
    { class: "facts" },
    facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
  );
}

/** Show a tooltip at the pointer, or hide it. */
export function showTip(title, facts, event) {
  const tip = byId("tip");
  if (title === null) {
    tip.hidden = true;
    return;
  }
  fill(tip, el("div", { class: "tip-title" }, title), factList(facts));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 16 + width > innerWidth ? event.clientX - width - 12 : event.clientX + 16;
  const y = Math.min(event.clientY + 16, innerHeight - height - 8);
  tip.style.left = `${Math.max(6, x)}px`;
  tip.style.top = `${Math.max(6, y)}px`;
}
