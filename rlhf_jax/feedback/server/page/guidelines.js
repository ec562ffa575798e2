// The panel with what to look for, and which keys there are.

import { Lost, call } from "./api.js";
import { byId, el, kept } from "./dom.js";

const GENERAL = [
  ["Enter", "submit"],
  ["S", "skip this item"],
  ["F", "flag it; then numbers choose what is wrong"],
  ["R", "give a reason"],
  ["H", "show or fold the earlier messages"],
  ["U, Ctrl Z", "undo: the last item again"],
  ["?", "this panel"],
  ["Esc", "leave a field or a panel"],
];

let loaded = null; // the version whose text is in the panel
let current = null;

/** Whether one-letter keys are switched on: speech input would press them by accident. */
export const shortcuts = () => byId("shortcuts").checked;

export function prepare() {
  const dialog = byId("guidelines");
  byId("guide").addEventListener("click", open);
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside the panel
  });
  const box = byId("shortcuts");
  box.checked = kept.get("shortcuts", "local") !== "off";
  const tell = () => document.body.classList.toggle("no-shortcuts", !box.checked);
  box.addEventListener("change", () => {
    kept.set("shortcuts", box.checked ? "on" : "off", "local");
    tell();
  });
  tell();
}

/** Which guidelines hold now; a mark stands at the button until they have been opened. */
export function announce(version) {
  current = version;
  byId("news").hidden = !version || kept.get("guidelines", "local") === version;
}

export function describe(keys) {
  const rows = [...keys, ...GENERAL].map(([key, what]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)));
  byId("keys").replaceChildren(...rows);
}

export async function open() {
  const dialog = byId("guidelines");
  if (dialog.open) return dialog.close();
  dialog.showModal();
  byId("close").focus();
  if (current !== null && loaded === current) return seen();
  byId("guidelines-text").textContent = "Loading …";
  try {
    const { text, version } = await call("api/guidelines");
    byId("guidelines-text").textContent = text || "There are no guidelines for this task: judge as you see fit.";
    loaded = current = version;
    seen();
  } catch (problem) {
    const why = problem instanceof Lost ? "There is no connection just now. Close this panel and open it again." : problem.message;
    byId("guidelines-text").textContent = why;
  }
}

function seen() {
  if (current) kept.set("guidelines", current, "local");
  byId("news").hidden = true;
}
