// What the reader has set, kept in the address after `#`, so that a link shows the same view.

export const DEFAULTS = Object.freeze({
  a: 0, // circuit shown
  b: -1, // circuit it is compared with
  n: null, // edges of the ranking; null: the circuit as found
  sel: null, // selected node, or edge by its name
  pins: [],
  only: null, // the node or line whose paths alone are drawn
  hidden: [],
  folded: [], // `a3`: the heads of a layer; `role:NAME`
  roles: null, // nodes by role; null: those the page came with
  labels: {}, // names the reader gave
  ports: true, // queries, keys and values apart
  stable: false, // every node keeps its place
  wide: false, // nothing but the picture
  theme: null,
  tab: "circuit",
  example: -1, // -1: the mean over the prompts
  zoom: null, // [scale, x, y]
});

const TYPES = {
  a: Number.isInteger,
  b: Number.isInteger,
  n: (x) => x === null || (Number.isInteger(x) && x >= 0),
  sel: (x) => x === null || typeof x === "string",
  pins: isTexts,
  only: (x) => x === null || typeof x === "string",
  hidden: isTexts,
  folded: isTexts,
  roles: (x) => x === null || (isRecord(x) && Object.values(x).every(isTexts)),
  labels: (x) => isRecord(x) && Object.values(x).every((y) => typeof y === "string"),
  ports: (x) => typeof x === "boolean",
  stable: (x) => typeof x === "boolean",
  wide: (x) => typeof x === "boolean",
  theme: (x) => x === null || x === "light" || x === "dark",
  tab: (x) => typeof x === "string",
  example: Number.isInteger,
  zoom: (x) => x === null || (Array.isArray(x) && x.length === 3 && x.every(Number.isFinite) && x[0] > 0),
};

function isTexts(value) {
  return Array.isArray(value) && value.every((item) => typeof item === "string");
}

function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The state that an address holds; what is missing, damaged or of no circuit here is as by default. */
export function parseHash(hash, data) {
  const state = { ...DEFAULTS };
  if (hash.replace(/^#/, "") === "") state.b = data.compare ?? -1; // opens as it was asked for
  for (const [key, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (!(key in TYPES)) continue;
    try {
      const value = JSON.parse(text);
      if (TYPES[key](value)) state[key] = value;
    } catch {
      // not ours
    }
  }
  if (state.a < 0 || state.a >= data.circuits.length) state.a = 0;
  if (state.b < -1 || state.b >= data.circuits.length || state.b === state.a) state.b = -1;
  return state;
}

/** The address of a state, of what differs from the defaults. */
export function toHash(state) {
  const parts = new URLSearchParams();
  for (const [key, standard] of Object.entries(DEFAULTS)) {
    if (JSON.stringify(state[key]) !== JSON.stringify(standard)) parts.set(key, JSON.stringify(state[key]));
  }
  return parts.toString();
}

/** A state that tells its listeners what has changed. */
export class Store {
  constructor(data) {
    this.data = data;
    this.state = parseHash(location.hash, data);
    this.listeners = [];
    window.addEventListener("hashchange", () => {
      if (location.hash.replace(/^#/, "") !== toHash(this.state)) this.set(parseHash(location.hash, data));
    });
  }

  listen(listener) {
    this.listeners.push(listener);
  }

  /** Change the state; `passing`: it will change again at once, so that the address can wait. */
  set(changes, { passing = false } = {}) {
    const changed = new Set();
    for (const [key, value] of Object.entries(changes)) {
      if (JSON.stringify(this.state[key]) !== JSON.stringify(value)) changed.add(key);
    }
    if (!changed.size) return;
    this.state = { ...this.state, ...changes };
    for (const listener of this.listeners) listener(this.state, changed, passing);
    if (!passing) this.write();
  }

  /** Add a name to a list of the state, or take it out. */
  toggle(key, name) {
    const list = this.state[key];
    this.set({ [key]: list.includes(name) ? list.filter((other) => other !== name) : [...list, name] });
  }

  get roles() {
    return this.state.roles ?? this.data.roles;
  }

  write() {
    const hash = toHash(this.state);
    try {
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    } catch {
      // a page inside another has no address of its own
    }
  }
}
