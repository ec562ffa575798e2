// Two responses: which is better, and by how much, on seven points.

import { button, card, digit, el } from "./dom.js";

const WORDS = ["A much better", "A better", "A slightly better", "Tie", "B slightly better", "B better", "B much better"];
const SENTENCES = [
  "A is much better than B",
  "A is better than B",
  "A is slightly better than B",
  "A and B are equally good",
  "B is slightly better than A",
  "B is better than A",
  "B is much better than A",
];

export const keys = [
  ["1 … 7", "from “A is much better” over 4, “tie”, to “B is much better”"],
  ["T", "tie"],
  ["B", "both are bad"],
];

export function build(task, changed) {
  let verdict = null;
  const cards = [card("A", task.responses[0]), card("B", task.responses[1])];
  const radios = WORDS.map((word, at) =>
    el("input", {
      type: "radio",
      name: "strength",
      value: at - 3,
      "aria-label": word,
      onchange: () => choose({ strength: at - 3 }),
    }),
  );
  const steps = radios.map((radio, at) =>
    el(
      "label",
      { class: `step size${Math.abs(at - 3)}` },
      radio,
      el("span", { class: "dot", "aria-hidden": "true" }),
      el("span", { class: "word", "aria-hidden": "true" }, WORDS[at], el("kbd", {}, String(at + 1))),
    ),
  );
  const bad = button("Both bad", "B", () => choose({ both_bad: true }), { class: "quiet tools", "aria-pressed": "false" });
  const said = el("p", { class: "said" });
  const question = el(
    "div",
    { class: "pair", role: "radiogroup", "aria-labelledby": "ask" },
    el("h2", { id: "ask" }, task.question || "Which response is better?"),
    said,
    el(
      "div",
      { class: "scale" },
      el("span", { class: "end", "aria-hidden": "true" }, "A"),
      el("div", { class: "steps" }, ...steps),
      el("span", { class: "end", "aria-hidden": "true" }, "B"),
    ),
    bad,
  );

  function show() {
    const strength = verdict?.strength;
    radios.forEach((radio, at) => (radio.checked = strength === at - 3));
    bad.setAttribute("aria-pressed", String(Boolean(verdict?.both_bad)));
    said.textContent = verdict?.both_bad ? "Both are bad" : strength === undefined ? "" : SENTENCES[strength + 3];
    cards[0].classList.toggle("preferred", strength < 0);
    cards[1].classList.toggle("preferred", strength > 0);
  }

  function choose(next) {
    verdict = next;
    show();
    changed();
  }

  show();
  return {
    cards,
    question,
    verdict: () => verdict,
    missing: () => (verdict ? "" : "Choose one of the seven points, or “both bad”."),
    says: () => said.textContent,
    set(given) {
      const good = given && (given.both_bad === true || WORDS[given.strength + 3] !== undefined);
      verdict = good ? given : null;
      show();
    },
    key(event) {
      const number = digit(event);
      if (number >= 1 && number <= 7) choose({ strength: number - 4 });
      else if (event.key.toLowerCase() === "t") choose({ strength: 0 });
      else if (event.key.toLowerCase() === "b") choose({ both_bad: true });
      else return false;
      return true;
    },
  };
}
