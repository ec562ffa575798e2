// What has been chosen so far, kept at the server and in this tab, so that a reload or a lost connection costs nothing.

import { Lost, call, token } from "./api.js";
import { kept } from "./dom.js";

const DELAY = 400; // ms after the last change
const AGAIN = 5000; // ms between tries without a connection

let unsaved = null; // {assignment, draft} that the server does not have yet
let timer = 0;
let running = null;

/** Keep this draft here at once and at the server soon. `told(connected)` hears how that went. */
export function keep(assignment, draft, told) {
  kept.set("draft", JSON.stringify({ whose: token(), assignment, draft }));
  unsaved = { assignment, draft };
  clearTimeout(timer);
  timer = setTimeout(() => save(told), DELAY);
}

/** Send what is unsaved now; resolves when it has been tried. With `leaving`, while the page goes away. */
export function save(told = () => {}, leaving = false) {
  clearTimeout(timer);
  if (running && !leaving) return running.then(() => save(told));
  if (!unsaved) return Promise.resolve();
  const sent = unsaved;
  running = call("api/draft", sent, { keepalive: leaving }).then(
    () => done(sent, told),
    (problem) => {
      if (!(problem instanceof Lost)) return done(sent, told); // judged meanwhile, or too long: this tab still has it
      told(false);
      timer = setTimeout(() => save(told), AGAIN);
    },
  );
  return running.finally(() => (running = null));
}

function done(sent, told) {
  if (unsaved === sent) unsaved = null;
  told(true);
}

/** Before the judgement itself is sent: nothing is begun, and what is under way arrives first. */
export function settle() {
  clearTimeout(timer);
  return running ?? Promise.resolve();
}

/** Nothing more to save: the judgement itself has arrived. */
export function forget() {
  clearTimeout(timer);
  unsaved = null;
  kept.set("draft", null);
}

/** A last draft of what could not be judged; whether the server has it. */
export async function leave(assignment, draft) {
  forget();
  try {
    await call("api/draft", { assignment, draft });
    return true;
  } catch {
    return false;
  }
}

/** The draft to go on with: the server's, or this tab's where it is newer. */
export function newest(assignment, fromServer) {
  let here = null;
  try {
    here = JSON.parse(kept.get("draft") ?? "null");
  } catch {
    // not ours
  }
  if (here?.assignment !== assignment || here.whose !== token()) return fromServer;
  return (here.draft?.at ?? 0) > (fromServer?.at ?? 0) ? here.draft : fromServer;
}
