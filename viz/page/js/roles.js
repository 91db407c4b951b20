// The tab on roles: groups of nodes that share a colour and can be folded into one.

import { el } from "./dom.js";
import { layersOf } from "./folding.js";
import { palette, roleColour } from "./looks.js";
import { section } from "./overview.js";

export function makeRoles(data, view, store, actions) {
  const { roles, state } = store;
  const colours = palette();
  const drawn = new Set(view.nodes.flatMap((node) => node.members));
  return [
    section(
      "Roles",
      Object.keys(roles).length ? null : el("p", { class: "quiet" }, "No node has a role yet."),
      el(
        "ul",
        { class: "roles" },
        Object.entries(roles).map(([role, members]) =>
          roleCard(role, members, roleColour(role, roles, colours), drawn, store, actions),
        ),
      ),
      data.rolesFrom && state.roles === null ? el("p", { class: "quiet" }, data.rolesFrom) : null,
      state.roles === null
        ? null
        : el(
            "button",
            { class: "link", onclick: () => store.set({ roles: null }) },
            "back to the roles the page came with",
          ),
    ),
    adder(data, store),
    section(
      "Fold",
      el("p", { class: "quiet" }, "Heads of a layer as one node:"),
      el(
        "div",
        { class: "chips" },
        layersOf(data).map((layer) =>
          el(
            "button",
            {
              class: "chip",
              "aria-pressed": String(state.folded.includes(layer)),
              onclick: () => store.toggle("folded", layer),
            },
            layer,
          ),
        ),
        el(
          "button",
          {
            class: "link",
            id: "fold-all",
            onclick: () => store.set({ folded: [...new Set([...state.folded, ...layersOf(data)])] }),
          },
          "all",
        ),
        el("button", { class: "link", id: "unfold-all", onclick: () => store.set({ folded: [] }) }, "none"),
      ),
    ),
  ];
}

function roleCard(role, members, colour, drawn, store, actions) {
  const folded = store.state.folded.includes(`role:${role}`);
  const without = (name) => {
    const roles = { ...store.roles, [role]: members.filter((other) => other !== name) };
    if (!roles[role].length) delete roles[role];
    store.set({ roles });
  };
  const rename = (event) => {
    const name = event.target.value.trim();
    if (!name || (name !== role && name in store.roles)) return;
    store.set({
      roles: Object.fromEntries(
        Object.entries(store.roles).map(([other, list]) => [other === role ? name : other, list]),
      ),
      folded: store.state.folded.map((other) => (other === `role:${role}` ? `role:${name}` : other)),
    });
  };
  return el(
    "li",
    { css: { "border-left-color": colour } },
    el(
      "div",
      { class: "row" },
      el("input", {
        class: "role-name",
        value: role,
        "aria-label": "Name of the role",
        maxlength: 300,
        onchange: rename,
      }),
      el(
        "button",
        {
          class: "small",
          "aria-pressed": String(folded),
          onclick: () => (folded ? actions.unfold(`role:${role}`) : actions.fold(`role:${role}`)),
        },
        folded ? "unfold" : "fold",
      ),
    ),
    el(
      "div",
      { class: "chips" },
      members.map((name) =>
        el(
          "span",
          { class: drawn.has(name) ? "chip" : "chip outside" },
          el(
            "button",
            { title: drawn.has(name) ? "Select" : "Not in what is shown", onclick: () => actions.goTo(name) },
            store.state.labels[name] ?? name,
          ),
          el(
            "button",
            { class: "remove", "aria-label": `Take ${name} out of the role`, onclick: () => without(name) },
            "×",
          ),
        ),
      ),
    ),
  );
}

/** Make a role of nodes by name. */
function adder(data, store) {
  const name = el("input", {
    id: "new-role",
    placeholder: "name of a role",
    maxlength: 300,
    "aria-label": "Name of a new role",
  });
  const nodes = el("input", { id: "new-role-nodes", placeholder: "a0.h1, m2, …", "aria-label": "Its nodes" });
  const says = el("p", { class: "quiet", role: "status" });
  const add = (event) => {
    event.preventDefault();
    const role = name.value.trim(),
      members = nodes.value.split(/[\s,]+/).filter(Boolean);
    const unknown = members.filter((member) => !data.nodes.has(member));
    if (!role || !members.length || unknown.length) {
      says.textContent = unknown.length
        ? `There is no node ${unknown.join(", ")}.`
        : "Give a name and at least one node.";
      return;
    }
    store.set({ roles: withRole(store.roles, role, members) });
  };
  return section(
    "New role",
    el("form", { class: "adder", onsubmit: add }, name, nodes, el("button", { class: "small" }, "add"), says),
  );
}

/** The roles when some nodes have this one, and no other; none for "". */
export function withRole(roles, role, members) {
  const found = new Map(); // an object has names of its own, like "constructor"
  for (const [name, list] of Object.entries(roles)) found.set(name, list.filter((node) => !members.includes(node)));
  if (role) found.set(role, [...(found.get(role) ?? []), ...members]);
  return Object.fromEntries([...found].filter(([, list]) => list.length));
}
