// Elements from plain values. Text only ever becomes a text node: nothing here, or elsewhere on the page, parses markup.

/** An element. `props`: attributes; `class`, `on…` (listeners) and booleans as one expects. Children: nodes or texts. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

const BLANK = /^[\s\u200b-\u200f\u2060\ufeff]*$/;

/** A stranger's text: shown as it is, in its own writing direction, its direction marks kept inside. */
export function foreign(text, empty) {
  if (BLANK.test(text)) return el("p", { class: "empty" }, text === "" ? empty : "(nothing but spaces or line breaks)");
  const node = el("div", { class: "text", dir: "auto" });
  node.textContent = text;
  return node;
}

/** One response, under the name by which the keys and the question speak of it. */
export function card(name, text, ...tools) {
  const heading = el("h2", {}, name);
  return el("article", { class: "card", "aria-label": name }, el("header", {}, heading, ...tools), foreign(text, "(an empty response)"));
}

/** The digit of a key press, also on keyboards whose digits need the shift key; null where it is none. */
export function digit(event) {
  if (/^[0-9]$/.test(event.key)) return Number(event.key);
  const code = event.shiftKey ? null : /^(?:Digit|Numpad)([0-9])$/.exec(event.code ?? "");
  return code && !/^[a-z?]$/i.test(event.key) ? Number(code[1]) : null;
}

/** A button that a mouse does not focus: Enter after a click still submits. */
export function button(label, key, onclick, props = {}) {
  const node = el("button", { type: "button", class: "quiet", ...props, onclick }, el("span", {}, label));
  if (key) node.append(el("kbd", {}, key));
  return unfocused(node);
}

export function unfocused(node) {
  node.addEventListener("mousedown", (event) => event.preventDefault());
  return node;
}

/** Where the browser keeps things for this tab ("session") or for this browser ("local"), or nowhere if it refuses. */
export const kept = {
  get(key, area = "session") {
    try {
      return window[`${area}Storage`].getItem(`label.${key}`);
    } catch {
      return null;
    }
  },
  set(key, value, area = "session") {
    try {
      if (value === null) window[`${area}Storage`].removeItem(`label.${key}`);
      else window[`${area}Storage`].setItem(`label.${key}`, value);
    } catch {
      // a browser that keeps nothing: the server's copy of the draft has to do
    }
  },
};
