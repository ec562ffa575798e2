// One response, several questions about it, each with a whole number for an answer.

import { card, digit, el } from "./dom.js";

export const keys = [
  ["1 … 9", "the answer to the marked question; the mark goes on to the next"],
  ["↑ ↓ or Tab", "another question"],
  ["← →", "one less, one more"],
  ["Backspace", "take the answer back"],
];

const title = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

export function build(task, changed) {
  const values = {};
  let current = 0;
  const rows = task.axes.map((axis, at) => {
    const labels = axis.labels ?? {};
    const points = Array.from({ length: axis.high - axis.low + 1 }, (_, step) => axis.low + step);
    const radios = points.map((value) =>
      el("input", {
        type: "radio",
        name: `axis${at}`,
        value,
        "aria-label": labels[value] ? `${value}, ${labels[value]}` : String(value),
        onchange: () => answer(at, value),
      }),
    );
    const steps = points.map((value, step) =>
      el("label", { class: "point", title: labels[value] }, radios[step], el("span", { "aria-hidden": "true" }, String(value))),
    );
    const said = el("span", { class: "said" });
    const legend = el(
      "legend",
      {},
      el("b", {}, title(axis.name)),
      axis.question ? el("span", {}, ` ${axis.question}`) : null,
      axis.required ? null : el("i", {}, " (optional)"),
    );
    const node = el("fieldset", { class: "axis", onfocusin: () => mark(at) }, legend, el("div", { class: "points" }, ...steps), said);
    node.addEventListener("pointerdown", () => mark(at));
    return { axis, labels, radios, points, said, node };
  });
  const question = el("div", { class: "rate", role: "group", "aria-label": task.question || "Rate the response" });
  question.append(el("h2", {}, task.question || "Rate the response"), ...rows.map((row) => row.node));

  function show() {
    rows.forEach((row, at) => {
      const value = values[row.axis.name];
      row.radios.forEach((radio, step) => (radio.checked = row.points[step] === value));
      const ends = [row.axis.low, row.axis.high].map((end) => (row.labels[end] ? `${end} ${row.labels[end]}` : ""));
      row.said.textContent = value === undefined ? ends.filter(Boolean).join(" · ") : `${value} ${row.labels[value] ?? `of ${row.axis.high}`}`;
      row.said.classList.toggle("chosen", value !== undefined);
      row.node.classList.toggle("current", at === current);
      row.node.setAttribute("aria-current", String(at === current));
    });
  }

  function mark(at) {
    current = Math.max(0, Math.min(at, rows.length - 1));
    show();
  }

  /** Marks a question by key: in sight, and with the focus where that was on another one. */
  function go(at) {
    const focused = question.contains(document.activeElement);
    mark(at);
    const row = rows[current];
    if (focused) (row.radios.find((radio) => radio.checked) ?? row.radios[0]).focus({ preventScroll: true });
    row.node.scrollIntoView({ block: "nearest" });
  }

  function answer(at, value) {
    if (value === undefined) delete values[rows[at].axis.name];
    else values[rows[at].axis.name] = value;
    show();
    changed();
  }

  function byKey(value) {
    if (!rows[current].points.includes(value)) return;
    answer(current, value);
    if (current < rows.length - 1) go(current + 1);
  }

  function step(by) {
    const { axis, points } = rows[current];
    const value = values[axis.name] ?? (by > 0 ? axis.low - 1 : axis.high + 1);
    if (points.includes(value + by)) answer(current, value + by);
  }

  show();
  return {
    cards: [card("Response", task.responses[0])],
    question,
    beside: true,
    verdict: () => (Object.keys(values).length ? { ratings: { ...values } } : null),
    missing() {
      const open = rows.filter((row) => row.axis.required && values[row.axis.name] === undefined);
      if (open.length) return `Still to answer: ${open.map((row) => row.axis.name.replaceAll("_", " ")).join(", ")}.`;
      return Object.keys(values).length ? "" : "Answer one question at least, or skip.";
    },
    says: () => rows.map((row) => `${title(row.axis.name)} ${values[row.axis.name] ?? "open"}`).join(", "),
    set(given) {
      for (const { axis, points } of rows) {
        const value = given?.ratings?.[axis.name];
        if (points.includes(value)) values[axis.name] = value;
        else delete values[axis.name];
      }
      const open = rows.findIndex((row) => values[row.axis.name] === undefined);
      mark(open < 0 ? rows.length - 1 : open);
    },
    key(event) {
      const number = digit(event);
      if (number !== null) byKey(number);
      else if (event.key === "ArrowUp") go(current - 1);
      else if (event.key === "ArrowDown") go(current + 1);
      else if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else if (event.key === "Backspace" || event.key === "Delete") answer(current, undefined);
      else return false;
      return true;
    },
  };
}
