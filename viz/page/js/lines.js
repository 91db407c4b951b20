// The lines of a view: one for all chosen edges between the same two ends, the strongest if they are too many to draw.
//
// Edges are many and drawn lines are few, and while the slider is dragged this is done again for each frame. Hence
// edges are numbered by line once for a folding, taken in the order of their ranking or tallied in arrays, and only lines
// that are drawn become objects.

export const MOST_LINES = 2500;
const kept = new WeakMap();

/** The lines to draw, and how many weaker ones are left out; `maskB` null: no comparison. */
export function collectLines(data, state, { a, b, maskA, maskB, most }, shownAs, hidden) {
  const bundles = bundlesOf(data, state, shownAs, hidden);
  const masks = { a, b, maskA, maskB, scores: a.scores ?? b?.scores ?? null };
  const { edges, present } = firstRanked(bundles, masks, most) ?? strongest(bundles, masks, most);
  const lines = makeLines(bundles, masks, edges);
  for (const line of lines) line.side = b === null ? "" : line.inA && line.inB ? "both" : line.inA ? "a" : "b";
  return { lines, leftOut: present - lines.length };
}

/** The number of each edge's line, -1 where it has none, and the lines' ends. */
function bundlesOf(data, state, shownAs, hidden) {
  const sourceAs = data.sources.map(shownAs),
    endAs = data.ends.map((end) => shownAs(end.node));
  const key = [...sourceAs, ...endAs, ...hidden, state.ports].join("\n");
  const before = kept.get(data);
  if (before?.key === key) return before;
  const ids = new Map();
  const idOf = (name) => ids.get(name) ?? ids.set(name, ids.size).get(name);
  // into a box that stands for several, all lines from one place are one
  const ports = data.ends.map((end, d) => (state.ports && data.nodes.has(endAs[d]) ? end.port : ""));
  const ends = endAs.map((name, d) => idOf(`${name}<${ports[d]}>`));
  const starts = sourceAs.map((name) => idOf(name));
  const gone = (name) => hidden.has(name);
  const sourceGone = sourceAs.map(gone),
    endGone = endAs.map(gone);
  const numbers = new Map();
  const lineOf = new Int32Array(data.edgeSource.length);
  const made = [];
  for (let e = 0; e < lineOf.length; e++) {
    const s = data.edgeSource[e],
      d = data.edgeDestination[e];
    lineOf[e] = -1;
    if (sourceGone[s] || endGone[d] || sourceAs[s] === endAs[d]) continue;
    const pair = starts[s] * ids.size + ends[d];
    let number = numbers.get(pair);
    if (number === undefined) {
      number = made.length;
      numbers.set(pair, number);
      made.push({ source: sourceAs[s], destination: endAs[d], port: ports[d] });
    }
    lineOf[e] = number;
  }
  const drawn = lineOf.reduce((n, line) => n + (line >= 0), 0);
  const found = { key, lineOf, ends: made, total: made.length, apart: made.length === drawn };
  kept.set(data, found);
  return found;
}

/** What `strongest` finds, where each line is one edge and edges are ranked by size already; else null. */
function firstRanked({ lineOf, apart }, { a, maskA, maskB }, most) {
  if (!apart || !a.descending || maskB !== null) return null;
  let present = 0;
  for (let e = 0; e < maskA.length; e++) if (maskA[e] && lineOf[e] >= 0) present += 1;
  const edges = new Uint32Array(Math.min(present, most));
  for (let i = 0, found = 0; found < edges.length; i++) {
    const e = a.order[i];
    if (maskA[e] && lineOf[e] >= 0) edges[found++] = e;
  }
  return { edges: edges.sort(), present };
}

/** The edges of the lines that are drawn, and how many lines there are. */
function strongest({ lineOf, total }, { maskA, maskB, scores }, most) {
  const sizes = new Float64Array(total);
  const counts = new Uint32Array(total);
  const kept = [];
  for (let e = 0; e < maskA.length; e++) {
    if (!maskA[e] && !(maskB !== null && maskB[e])) continue;
    const line = lineOf[e];
    if (line < 0) continue;
    kept.push(e);
    counts[line] += 1;
    if (scores !== null) sizes[line] += Math.abs(scores[e]) || 0;
  }
  const chosen = new Uint8Array(total);
  let present = 0;
  for (let line = 0; line < total; line++) present += chosen[line] = counts[line] ? 1 : 0;
  if (present <= most) return { edges: kept, present };
  const least = kthLargest(sizes.filter((_, line) => counts[line]), most);
  let room = most;
  for (let line = 0; line < total; line++) if (chosen[line] && sizes[line] > least) room -= 1;
  for (let line = 0; line < total; line++) {
    if (!chosen[line] || sizes[line] > least) continue;
    chosen[line] = sizes[line] === least && room > 0 ? 1 : 0;
    room -= chosen[line];
  }
  return { edges: kept.filter((e) => chosen[lineOf[e]]), present };
}

/** The k-th largest of some numbers, which are put into another order. */
function kthLargest(values, k) {
  let low = 0,
    high = values.length - 1;
  while (low < high) {
    const pivot = values[(low + high) >> 1];
    let i = low,
      j = high;
    while (i <= j) {
      while (values[i] > pivot) i += 1;
      while (values[j] < pivot) j -= 1;
      if (i <= j) {
        [values[i], values[j]] = [values[j], values[i]];
        i += 1;
        j -= 1;
      }
    }
    if (k - 1 <= j) high = j;
    else if (k - 1 >= i) low = i;
    else break;
  }
  return values[k - 1];
}

function makeLines({ lineOf, ends, total }, { a, b, maskA, maskB, scores }, edges) {
  const made = new Array(total);
  const lines = [];
  for (const e of edges) {
    const number = lineOf[e];
    let line = made[number];
    if (line === undefined) {
      line = made[number] = newLine(ends[number], a, scores === null ? null : 0);
      lines.push(line);
    }
    line.edges.push(e);
    line.mixed ||= line.sign !== null && line.sign !== a.signs[e]; // measured for single edges, and they disagree
    line.sign = line.mixed ? 0 : a.signs[e];
    line.inA += maskA[e];
    line.inB += maskB === null ? 0 : maskB[e];
    if (scores !== null) line.size += Math.abs(scores[e]) || 0;
    if (a.scores !== null) {
      line.score = (line.score ?? 0) + a.scores[e];
      if (a.rank !== null) line.rank = Math.min(line.rank, a.rank[e]);
    }
    if (b !== null && b.scores !== null) line.otherScore = (line.otherScore ?? 0) + b.scores[e];
  }
  return lines;
}

function newLine({ source, destination, port }, a, size) {
  const id = `${source}->${destination}${port && `<${port}>`}`;
  return {
    id,
    source,
    destination,
    port,
    score: null,
    otherScore: null,
    size,
    sign: null,
    mixed: false,
    scored: a.scoreSigns,
    rank: Infinity,
    edges: [],
    inA: 0,
    inB: 0,
  };
}
