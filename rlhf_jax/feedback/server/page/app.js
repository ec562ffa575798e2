// The labelling page: asks for an item, shows it, sends what was judged, and asks for the next one.

import { Lost, Refused, call, insist, takeToken, tryNow } from "./api.js";
import { button, byId, digit, el, unfocused } from "./dom.js";
import * as drafts from "./drafts.js";
import * as guidelines from "./guidelines.js";
import * as pair from "./pair.js";
import * as rank from "./rank.js";
import * as rate from "./rate.js";
import * as view from "./view.js";

const KINDS = { pair, rank, rate };
const FLAGS = ["unsafe", "personal data", "wrong language", "broken"];
const LOOK_AGAIN = 20000; // ms between looks for new items on a page without one

let task = null;
let form = null; // what pair.js, rank.js or rate.js built for it
let canUndo = false;
let undoes = null; // the judgement that undo takes back: asking twice takes back one
let flags = new Set();
let spent = 0; // ms in sight before `since`
let since = 0;
let busy = false;
let lookAgain = 0;
let round = 0; // counts the links opened in this tab: an answer to an earlier one is not for us

const announce = (text) => (byId("live").textContent = text);
const elapsed = () => spent + (document.hidden || !since ? 0 : performance.now() - since);

function notice(kind, text, ...tools) {
  const box = byId("notice");
  box.className = kind;
  box.setAttribute("role", kind === "bad" ? "alert" : "status");
  box.replaceChildren(el("span", {}, text), ...tools);
  box.hidden = !text;
}

// ---- what is on the page

function answer() {
  return {
    assignment: task.assignment,
    verdict: form.verdict(),
    flags: [...flags],
    rationale: byId("rationale").value,
    ms: Math.round(elapsed()),
  };
}

/** Something was chosen or written: keep it, and show what follows from it. */
function changed() {
  const { assignment, ...draft } = answer();
  drafts.keep(assignment, { ...draft, at: Date.now() }, connected);
  if (byId("notice").className !== "lost") notice("", "");
  refresh();
  announce(form.says());
}

function connected(yes) {
  if (busy) return; // what is being sent tells for itself
  if (!yes) return lost("No connection. What you choose is kept here and saved when it is back.");
  if (byId("notice").className === "lost") notice("", "");
}

function lost(text) {
  notice("lost", text, button("Try now", "", () => (busy ? tryNow() : drafts.save(connected))));
}

function refresh() {
  for (const part of [form.question, byId("flags"), byId("reason")]) part.inert = busy;
  byId("submit").setAttribute("aria-disabled", String(busy || Boolean(form.missing())));
  byId("undo").setAttribute("aria-disabled", String(busy || !canUndo));
  byId("skip").setAttribute("aria-disabled", String(busy));
  byId("flag").firstElementChild.textContent = flags.size ? "Flagged" : "Flag";
  byId("flag").classList.toggle("on", flags.size > 0);
  byId("flag").title = [...flags].join(", ");
  byId("why").classList.toggle("on", byId("rationale").value !== "");
  document.querySelectorAll("#flags input").forEach((box) => (box.checked = flags.has(box.value)));
}

function drawer(name, opener, open) {
  byId(name).hidden = !open;
  byId(opener).setAttribute("aria-expanded", String(open));
}

function toggleFlags(open = byId("flags").hidden) {
  const inside = byId("flags").contains(document.activeElement);
  drawer("flags", "flag", open);
  if (open) byId("flags").querySelector("input").focus();
  else if (inside) byId("work").focus({ preventScroll: true });
}

function toggleReason(open = byId("reason").hidden) {
  drawer("reason", "why", open);
  if (open) byId("rationale").focus();
}

/** What the server answered; `said` is a word about what was done before. */
function show(body, said = "") {
  clearTimeout(lookAgain);
  task = body.task;
  canUndo = Boolean(body.can_undo ?? task?.can_undo);
  undoes = body.undoes ?? null;
  view.progress(body);
  guidelines.announce(body.guideline_version ?? null);
  guidelines.describe(task ? KINDS[task.kind].keys : []);
  notice("", "");
  if (!task) return without(body, said);
  byId("dock").hidden = false;
  form = KINDS[task.kind].build(task, changed);
  const cards = el("section", { class: `cards ${task.kind} of${task.responses.length}`, "aria-label": "The responses" }, ...form.cards);
  const work = byId("work");
  work.className = task.kind;
  work.replaceChildren(view.prompt(task.messages), cards);
  if (form.beside) cards.append(form.question);
  byId("question").replaceChildren(...(form.beside ? [] : [form.question]));
  const names = task.flags ?? FLAGS;
  const boxes = names.map((name, at) =>
    el("label", { class: "chip" }, el("input", { type: "checkbox", value: name, onchange: () => flip(name) }), el("span", {}, name), el("kbd", {}, String(at + 1))),
  );
  byId("flags").replaceChildren(byId("flags").firstElementChild, ...boxes);
  restore(drafts.newest(task.assignment, task.draft), names);
  window.scrollTo(0, 0);
  work.focus({ preventScroll: true });
  if (body.notice) notice("info", body.notice, button("Guidelines", "?", guidelines.open));
  if (said) notice("info", said);
  announce(`Item ${body.progress.done + 1} of ${body.progress.total}. ${task.question ?? ""}`);
}

function restore(draft, names) {
  form.set(draft?.verdict ?? null);
  flags = new Set((Array.isArray(draft?.flags) ? draft.flags : []).filter((name) => names.includes(name)));
  byId("rationale").value = typeof draft?.rationale === "string" ? draft.rationale : "";
  spent = Number.isFinite(draft?.ms) ? draft.ms : 0;
  since = performance.now();
  drawer("flags", "flag", false);
  drawer("reason", "why", byId("rationale").value !== "");
  refresh();
}

function flip(name) {
  if (!flags.delete(name)) flags.add(name);
  changed();
  announce(flags.size ? `Flagged: ${[...flags].join(", ")}` : "Not flagged");
}

/** Nothing of the last item stays on the page, nor of the last person at it. */
function clear() {
  clearTimeout(lookAgain);
  task = form = null;
  flags = new Set();
  byId("rationale").value = "";
  byId("question").replaceChildren();
  document.querySelectorAll("#flags label").forEach((box) => box.remove());
  notice("", "");
  byId("dock").hidden = true;
}

/** Nothing to judge now: finished or paused. Looks again by itself, as items come back when others leave them. */
function without(body, said) {
  clear();
  const tools = [button("Look again", "", () => ask())];
  if (canUndo) tools.unshift(button("Undo the last one", "U", undo));
  const page = body.paused
    ? view.plain("paused", "Paused", [...(said ? [said] : []), body.paused, "Nothing you have judged is lost. This page goes on by itself when the pause is over."], tools)
    : view.plain("finished", "All done, thank you", [...(said ? [said] : []), `You have been through ${body.progress.done} ${body.progress.done === 1 ? "item" : "items"}. You can close this page.`], tools);
  replace(page);
  lookAgain = setTimeout(quietly, LOOK_AGAIN);
}

/** A look that leaves the page and its focus alone unless there is something new. */
async function quietly() {
  const here = round;
  try {
    const body = document.hidden ? null : await call("api/task");
    if (body && here === round && !busy && (body.task || Boolean(body.paused) !== byId("work").matches(":has(.paused)"))) return show(body);
  } catch (problem) {
    if (problem instanceof Refused && here === round) return failed(problem);
  }
  if (here === round && !task) lookAgain = setTimeout(quietly, LOOK_AGAIN);
}

function replace(page) {
  const work = byId("work");
  work.className = "";
  work.replaceChildren(page);
  page.querySelector("h1").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function failed(problem) {
  clear();
  const [title, text] =
    problem.status === 401
      ? ["This link does not open the page", "Open the whole link that you were given, with what stands after the “#”, or ask for a new one."]
      : ["The server does not answer as it should", problem.message];
  replace(view.plain("bad", title, [text], [button("Try again", "", start)]));
}

// ---- what is done

/** One thing at a time; what the server answers is the next page, and `says` tells of it what is to be told there. */
async function act(path, body, { before = async () => {}, says = () => "" } = {}) {
  if (busy) return;
  busy = true;
  if (form) refresh();
  const here = round;
  try {
    await before();
    const next = await insist(path, body, {
      waiting: (problem, wait) => {
        if (here !== round) return;
        if (!task) replace(view.plain("bad", "No connection", [`${problem}. Trying again in ${wait} s.`], [button("Try now", "", tryNow)]));
        else lost(`${problem}. Your answer is kept here; trying again in ${wait} s.`);
      },
      back: () => here === round && announce("The connection is back"),
    });
    if (here !== round) return;
    if (path === "api/judgement") drafts.forget();
    busy = false;
    show(next, says(next));
  } catch (problem) {
    if (here !== round) return;
    if (!(problem instanceof Refused)) throw problem;
    return await refused(problem, path, body);
  } finally {
    if (here === round) {
      busy = false;
      if (form) refresh();
    }
  }
}

async function refused(problem, path, sent) {
  const here = round;
  let said = "";
  if (problem.status === 409 && path === "api/undo") said = `Nothing was taken back: ${problem.message}.`;
  if (problem.status === 409 && path === "api/judgement") said = await unsaved(problem, sent);
  if (here !== round) return;
  busy = false;
  if (said) return ask(said);
  if (problem.status === 401 || !form) return failed(problem);
  notice("bad", problem.message);
}

/** A judgement that is not this person's to make any more: what they said of it stays as a draft, or is shown once more. */
async function unsaved(problem, { assignment, flags, rationale, ms }) {
  const kept = await drafts.leave(assignment, { verdict: form.verdict(), flags, rationale, ms, at: Date.now() });
  const rest = kept ? " What you said of it is kept as a draft." : rationale ? ` You wrote: “${rationale}”` : "";
  return `The item before could not be saved (${problem.message}).${rest}`;
}

const ask = (said = "") => act("api/task", undefined, { says: () => said });

function submit() {
  if (!form || busy) return;
  const missing = form.missing();
  if (missing) return notice("info", missing);
  return act("api/judgement", answer(), { before: drafts.settle });
}

function skip() {
  if (form && !busy) return act("api/judgement", { ...answer(), verdict: { skip: true } }, { before: drafts.settle });
}

function undo() {
  if (!canUndo || busy) return;
  return act("api/undo", undoes === null ? {} : { judgement: undoes }, { before: () => drafts.save(), says: takenBack });
}

/** What an undo has brought: not always the item, where the connection was away for longer than its place was kept. */
function takenBack({ task: next, undone }) {
  if (next?.assignment === undone) return "Your last answer is here again: change it, then submit.";
  return `Your last answer is taken back, but somebody else has its item now${next ? "; this is another one" : ""}.`;
}

// ---- keys

const history = () => document.querySelectorAll(".prompt details").forEach((part) => (part.open = !part.open));
const LETTERS = { h: history, s: skip, f: () => toggleFlags(), r: () => toggleReason(), u: undo, "?": guidelines.open };

function onKey(event) {
  const { key, target } = event;
  if (event.isComposing || event.defaultPrevented) return;
  const control = event.ctrlKey || event.metaKey;
  const typing = target.matches("textarea");
  let done = true;
  if (byId("guidelines").open) {
    if (key !== "?") return; // Escape and Tab are the dialog's own
    guidelines.open();
  } else if (key === "Enter" && (control || !target.closest("button, summary, a, textarea"))) {
    if (!event.repeat) submit();
  } else if (key === "Escape") {
    if (byId("flags").contains(target)) toggleFlags(false);
    else if (typing) {
      toggleReason(byId("rationale").value !== "");
      byId("work").focus({ preventScroll: true });
    } else return;
  } else if (typing || event.altKey) return;
  else if (control) {
    if (key.toLowerCase() !== "z" || event.shiftKey) return;
    if (!event.repeat) undo();
  } else if (event.key.length === 1 && key !== " " && !guidelines.shortcuts()) return;
  else if (byId("flags").contains(target) && digit(event) !== null) {
    const box = byId("flags").querySelectorAll("input")[digit(event) - 1];
    if (box) flip(box.value);
  } else if (key.length === 1 && LETTERS[key.toLowerCase()]) {
    if (!event.repeat && (form || "u?".includes(key.toLowerCase()))) LETTERS[key.toLowerCase()]();
  } else done = Boolean(form && !busy && !byId("flags").contains(target) && form.key(event));
  if (done) event.preventDefault();
}

// ---- begin

function start() {
  round += 1;
  busy = false;
  clear();
  byId("work").replaceChildren(el("p", { class: "wait" }, "Loading …"));
  if (!takeToken()) return failed(new Refused(401, ""));
  return ask();
}

for (const [id, does] of Object.entries({ submit, skip, undo, flag: () => toggleFlags(), why: () => toggleReason() })) {
  unfocused(byId(id)).addEventListener("click", () => does());
}
byId("rationale").addEventListener("input", changed);
document.addEventListener("keydown", onKey);
window.addEventListener("online", () => (busy ? tryNow() : drafts.save(connected)));
window.addEventListener("hashchange", start);
window.addEventListener("pagehide", () => drafts.save(() => {}, true));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    spent += since ? performance.now() - since : 0;
    drafts.save(() => {}, true);
  }
  since = performance.now();
});
guidelines.prepare();
start();
