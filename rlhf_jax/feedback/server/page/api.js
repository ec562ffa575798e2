// Talking to the server: the token, one call, and a call that is repeated until the connection is back.

import { kept } from "./dom.js";

/** No answer, or none that can be used: worth trying again. */
export class Lost extends Error {}

/** The server said no, and why. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let secret = "";

/** The token of the person at this page. */
export const token = () => secret;

/** The token of the link (after the #, which browsers send to nobody), moved out of the address bar. */
export function takeToken() {
  const given = location.hash.slice(1);
  if (given) {
    kept.set("token", given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  secret = given || kept.get("token") || secret;
  return secret;
}

/** One request. Throws Lost or Refused. */
export async function call(path, body, { keepalive = false } = {}) {
  const headers = { Authorization: `Bearer ${secret}` };
  const options = { headers, cache: "no-store", keepalive, signal: AbortSignal.timeout(15000) };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer, data;
  try {
    answer = await fetch(path, options);
    data = await answer.json();
  } catch {
    throw new Lost(answer ? `The server answered ${answer.status}` : "No connection");
  }
  if (answer.status >= 500 || answer.status === 429) throw new Lost(`The server answered ${answer.status}`);
  if (!answer.ok) throw new Refused(answer.status, data.error ?? `The server answered ${answer.status}`);
  return data;
}

let wake = () => {};

/** Try again now: what the banner's button and the browser's "online" event do. */
export function tryNow() {
  wake();
}

function pause(seconds) {
  return new Promise((done) => {
    const timer = setTimeout(done, 1000 * seconds);
    wake = () => {
      clearTimeout(timer);
      done();
    };
  });
}

/** The same request until it is answered; `waiting(problem, seconds)` is told before each pause, `back()` once it is over. */
export async function insist(path, body, { waiting, back }) {
  for (let wait = 1; ; wait = Math.min(2 * wait, 15)) {
    try {
      const data = await call(path, body);
      if (wait > 1) back();
      return data;
    } catch (problem) {
      if (!(problem instanceof Lost)) {
        if (wait > 1) back();
        throw problem;
      }
      waiting(problem.message, wait);
      await pause(wait);
    }
  }
}
