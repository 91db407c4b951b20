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
  const out = Array.from({ length: logits }, () => []);
  const into = Array.from({ length: logits + 1 }, () => []);
  for (let e = 0; e < mask.length; e++) {
    if (!mask[e]) continue;
    for (const component of feeds[edgeDestination[e]]) {
      out[edgeSource[e]].push(component);
      into[component].push(edgeSource[e]);
    }
  }
  spread(fromInput, [...Array(data.inputs).keys()], (s) => (s < logits ? out[s] : []));
  spread(toLogits, [logits], (s) => into[s]);
  const kept = new Uint8Array(mask.length);
  for (let e = 0; e < mask.length; e++) {
    if (!mask[e]) continue;
    const source = edgeSource[e];
    const alive = fromInput[source] && toLogits[source];
    kept[e] = alive && feeds[edgeDestination[e]].some((c) => c === logits || (fromInput[c] && toLogits[c])) ? 1 : 0;
  }
  return kept;
}

function spread(reached, queue, next) {
  while (queue.length) {
    for (const other of next(queue.pop())) {
      if (!reached[other]) {
        reached[other] = 1;
        queue.push(other);
      }
    }
  }
}

/** How many of a circuit's units a mask has. */
export function countUnits(data, circuit, mask) {
  if (circuit.unit !== "node") return countEdges(mask);
  return new Set(data.edgeSource.filter((_, e) => mask[e])).size;
}

/** How many edges a mask has. */
export function countEdges(mask) {
  let n = 0;
  for (const kept of mask) n += kept;
  return n;
}
