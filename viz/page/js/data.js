// The page's data, unpacked: arrays over edges, and the nodes that they join.

function bytes(text) {
  const raw = atob(text);
  const array = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
  return array.buffer;
}

export const unpack = {
  u8: (text) => new Uint8Array(bytes(text)),
  u16: (text) => new Uint16Array(bytes(text)),
  u32: (text) => new Uint32Array(bytes(text)),
  i8: (text) => new Int8Array(bytes(text)),
  f32: (text) => new Float32Array(bytes(text)),
};

/** The data in the page's `data` element. */
export function readData(text) {
  const raw = JSON.parse(text);
  const graph = raw.graph;
  const edgeSource = unpack.u16(graph.edgeSource);
  const edgeDestination = unpack.u16(graph.edgeDestination);
  const ends = graph.ends.map(([node, port]) => ({ node, port }));
  const nodes = new Map(graph.nodes.map((node) => [node.name, { ...node, heads: [] }]));
  graph.feeds.forEach((sources, d) => {
    const node = nodes.get(ends[d].node);
    if (node.kind === "group") node.heads = sources.map((s) => graph.sources[s]);
  });
  return {
    raw,
    title: raw.title,
    notes: raw.notes,
    sources: graph.sources,
    destinations: graph.destinations,
    feeds: graph.feeds,
    inputs: graph.inputs,
    total: graph.total,
    places: raw.places,
    outputs: graph.nodes.filter((node) => node.kind === "logits").map((node) => node.name),
    ends,
    nodes,
    edgeSource,
    edgeDestination,
    inOrder: isInOrder(edgeSource, edgeDestination, graph),
    circuits: raw.circuits.map((circuit, index) => readCircuit(circuit, index, edgeSource.length)),
    roles: raw.roles,
    rolesFrom: raw.rolesFrom,
    patterns: raw.patterns,
    direct: raw.direct,
    lens: raw.lens,
  };
}

function readCircuit(raw, index, edges) {
  const order = raw.order === null ? null : unpack.u32(raw.order); // of edges, or of the sources where nodes are ranked
  let rank = null;
  if (order !== null && raw.unit === "edge") {
    rank = new Uint32Array(edges).fill(0xffffffff);
    order.forEach((edge, i) => (rank[edge] = i + 1));
  }
  let effects = null;
  if (raw.effects !== null) {
    const changes = unpack.f32(raw.effects.changes);
    const of = new Map();
    unpack.u32(raw.effects.edges).forEach((edge, i) => of.set(edge, changes[i]));
    effects = { ...raw.effects, of };
  }
  const scores = raw.scores === null ? null : unpack.f32(raw.scores);
  const descending = rank !== null && order.length === edges && falls(order, scores);
  return {
    ...raw,
    index,
    kept: unpack.u32(raw.kept),
    scores,
    signs: unpack.i8(raw.signs),
    order,
    descending,
    rank,
    effects,
  };
}

/** Whether all edges into a component come before those out of it. */
function isInOrder(edgeSource, edgeDestination, { sources, feeds }) {
  const written = new Uint8Array(sources.length + 1); // those that an earlier edge leads out of
  for (let e = 0; e < edgeSource.length; e++) {
    written[edgeSource[e]] = 1;
    if (feeds[edgeDestination[e]].some((component) => written[component])) return false;
  }
  return true;
}

/** Whether a ranking is that of the scores' sizes. */
function falls(order, scores) {
  if (scores === null) return false;
  for (let i = 1; i < order.length; i++)
    if (!(Math.abs(scores[order[i]]) <= Math.abs(scores[order[i - 1]]))) return false;
  return true;
}

/** An edge's name, like `a0.h1->a1.h0<q>`. */
export function edgeName(data, edge) {
  return `${data.sources[data.edgeSource[edge]]}->${data.destinations[data.edgeDestination[edge]]}`;
}
