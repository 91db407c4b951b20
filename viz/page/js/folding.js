// What stands for what: heads of a layer as one box, nodes of a role as one, or both (supernodes).

/** The ways to fold everything at once, by name: what `folded` of the state then holds. */
export function foldings(data, roles) {
  const layers = layersOf(data);
  const named = Object.keys(roles).map((role) => `role:${role}`);
  return {
    nothing: [],
    layers,
    ...(named.length ? { roles: named, supernodes: [...named, ...layers] } : {}),
  };
}

/** Which of them is in force; null for another choice of the reader's. */
export function foldingOf(data, roles, folded) {
  const same = (all) => all.length === folded.length && all.every((name) => folded.includes(name));
  return Object.entries(foldings(data, roles)).find(([, all]) => same(all))?.[0] ?? null;
}

/** The layers with heads, by the name that stands for these. */
export function layersOf(data) {
  return [
    ...new Set([...data.nodes.values()].filter((node) => node.kind === "head").map((node) => node.sublayer)),
  ];
}

/** Which node on the page stands for a node of the graph: that of its role before that of its layer. */
export function folding(data, state, roleOf) {
  const folded = new Set(state.folded);
  return (name) => {
    const role = roleOf.get(name);
    if (role !== undefined && folded.has(`role:${role}`)) return `role:${role}`;
    const node = data.nodes.get(name);
    return folded.has(node.sublayer) ? node.sublayer : name;
  };
}
