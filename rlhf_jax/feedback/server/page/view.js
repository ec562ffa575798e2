// What is on the page besides the answer: progress, the prompt, and the pages without an item.

import { byId, el, foreign } from "./dom.js";

const NAMES = { user: "User", assistant: "Assistant", system: "System", developer: "Developer", tool: "Tool", text: "Prompt" };

function minutes(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.max(1, Math.round(seconds / 60));
  if (whole < 60) return `about ${whole} min left`;
  return `about ${Math.floor(whole / 60)} h${whole % 60 ? ` ${whole % 60} min` : ""} left`;
}

export function progress({ progress: { done, total, seconds_left: left } = {}, annotator }) {
  if (done === undefined) return;
  const bar = byId("bar");
  bar.max = Math.max(total, 1);
  bar.value = done;
  const time = done < total ? minutes(left) : "";
  byId("count").replaceChildren(el("b", {}, `${done} of ${total}`), ...(time ? [el("span", { class: "time" }, time)] : []));
  byId("count").title = "as if you judged all that is left, and skipped nothing: others may take some of it";
  byId("who").textContent = annotator ?? "";
  document.title = `${done} of ${total} · Label`;
}

function message({ role, content }) {
  return el("div", { class: `message ${role}` }, el("h3", {}, NAMES[role] ?? role), foreign(content, "(an empty message)"));
}

/** The conversation: its last message in full, what went before folded above it. */
export function prompt(messages) {
  const before = messages.slice(0, -1);
  const parts = [];
  if (before.length) {
    const turns = before.length === 1 ? "1 earlier message" : `${before.length} earlier messages`;
    parts.push(el("details", { "aria-label": turns }, el("summary", {}, turns), ...before.map(message)));
  }
  return el("section", { class: "prompt", "aria-label": "The prompt" }, ...parts, ...messages.slice(-1).map(message));
}

/** A page of words: `mark` is a class for the sign above the title. */
export function plain(mark, title, texts, buttons = []) {
  return el(
    "section",
    { class: `plain ${mark}` },
    el("div", { class: "sign", "aria-hidden": "true" }),
    el("h1", { tabindex: "-1" }, title),
    ...texts.map((text) => el("p", {}, text)),
    buttons.length ? el("div", { class: "actions" }, ...buttons) : null,
  );
}
