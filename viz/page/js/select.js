// Which edges a circuit has: those it was found with, or the first of its ranking.

/** A circuit's edges as a mask; `n` null: as found, else the n units with the largest scores, dangling parts dropped. */
export function chooseEdges(data, circuit, n) {
  const mask = new Uint8Array(data.edgeSource.length);
  if (n === null || circuit.order === null) {
    for (const edge of circuit.kept) mask[edge] = 1;
    return mask;
  }
  if (circuit.unit === "node") return prune(data, betweenNodes(data, circuit.order.subarray(0, n)));
  for (let i = 0; i < Math.min(n, circuit.order.length); i++) mask[circuit.order[i]] = 1;
  return prune(data, mask);
}

/** The edges between some nodes: out of one of them, into what one of them or the logits read. */
function betweenNodes(data, sources) {
  const { edgeSource, edgeDestination, feeds } = data;
  const kept = new Uint8Array(data.sources.length + 1);
  for (const source of [...sources, data.sources.length]) kept[source] = 1;
  const read = feeds.map((components) => components.some((component) => kept[component]));
  return Uint8Array.from(edgeSource, (source, e) => (kept[source] && read[edgeDestination[e]] ? 1 : 0));
}

/** Without the edges on no path from the input to the logits. */
export function prune(data, mask) {
  const { edgeSource, edgeDestination, feeds, sources } = data;
  const logits = sources.length;
  const fromInput = new Uint8Array(logits + 1);
  const toLogits = new Uint8Array(logits + 1);
  for (let s = 0; s < data.inputs; s++) fromInput[s] = 1;
  toLogits[logits] = 1;
  // where edges are in execution order, one pass reaches all; else until one finds nothing more
  let grown;
  const mark = (marked, component) => {
    if (marked[component]) return;
    marked[component] = 1;
    grown = !data.inOrder;
  };
  do {
    grown = false;
    for (let e = 0, fed = -1; e < mask.length; e++) {
      const d = edgeDestination[e];
      if (d === fed || !mask[e] || !fromInput[edgeSource[e]]) continue;
      for (const component of feeds[d]) mark(fromInput, component);
      fed = d; // others into it say no more
    }
  } while (grown);
  do {
    grown = false;
    for (let e = mask.length - 1, last = -1, read = false; e >= 0; e--) {
      const d = edgeDestination[e];
      if (d !== last) read = feeds[(last = d)].some((component) => toLogits[component]);
      if (read && mask[e]) mark(toLogits, edgeSource[e]);
    }
  } while (grown);
  const through = fromInput.map((reached, component) => reached & toLogits[component]);
  through[logits] = 1;
  const read = feeds.map((components) => components.some((component) => through[component]));
  const kept = new Uint8Array(mask.length);
  for (let e = 0; e < mask.length; e++) if (mask[e] && through[edgeSource[e]] && read[edgeDestination[e]]) kept[e] = 1;
  return kept;
}

/** How many of a circuit's units a mask has. */
export function countUnits(data, circuit, mask) {
  if (circuit.unit !== "node") return countEdges(mask);
  return new Set(data.edgeSource.filter((_, e) => mask[e])).size;
}

/** How many edges a mask has. */
export function countEdges(mask) {
  let n = 0;
  for (let e = 0; e < mask.length; e++) n += mask[e];
  return n;
}
