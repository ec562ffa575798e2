// K responses, best first: pick the best, then the next; a tie puts a response beside the one picked last.

import { button, card, digit, el } from "./dom.js";

export const keys = [
  ["1 … 9", "put this response next, the best one first; again to take it out"],
  ["T", "the next one ties with the last one"],
  ["Backspace", "take the last one (or tied ones) back"],
];

const ORDINALS = ["1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th"];

export function build(task, changed) {
  const count = task.responses.length;
  let groups = []; // [[2], [0, 3]]: response 2 is best, then 0 and 3 alike
  let tie = false;
  const picks = task.responses.map((_, at) =>
    button("", String(at + 1), () => pick(at), { class: "pick quiet", "aria-pressed": "false" }),
  );
  const cards = task.responses.map((text, at) => card(`Response ${at + 1}`, text, picks[at]));
  const order = el("ol", { class: "order", "aria-label": "Order so far, best first" });
  const tied = button("Tie with last", "T", () => toggleTie(), { "aria-pressed": "false" });
  const back = button("Take back", "Backspace", () => takeBack());
  const said = el("p", { class: "said" });
  const question = el(
    "div",
    { class: "rank", role: "group", "aria-labelledby": "ask" },
    el("h2", { id: "ask" }, `${task.question || "Which response is better?"} Put them in order, the best one first.`),
    said,
    order,
    el("div", { class: "tools" }, tied, back),
  );

  const picked = () => groups.flat();

  function show() {
    const left = count - picked().length;
    picks.forEach((node, at) => {
      const place = groups.findIndex((group) => group.includes(at));
      const alike = place >= 0 && groups[place].length > 1;
      node.firstChild.textContent = place < 0 ? "Pick" : `${alike ? "= " : ""}${ORDINALS[place]}`;
      node.setAttribute("aria-pressed", String(place >= 0));
      node.setAttribute("aria-label", `Response ${at + 1}: ${place < 0 ? "not picked" : node.firstChild.textContent}`);
      cards[at].classList.toggle("picked", place >= 0);
    });
    const chips = groups.map((group) => el("li", {}, group.map((at) => at + 1).join(" = ")));
    if (tie && left) chips.at(-1).append(" = …");
    order.replaceChildren(...(chips.length ? chips : [el("li", { class: "none" }, "none picked yet")]));
    tied.setAttribute("aria-pressed", String(tie));
    tied.setAttribute("aria-disabled", String(!groups.length || !left));
    back.setAttribute("aria-disabled", String(!groups.length));
    said.textContent = !left
      ? "All are placed"
      : tie
        ? "Just as good as the last?"
        : groups.length
          ? `Next best? ${left} to go`
          : "Which is best?";
  }

  function pick(at) {
    if (picked().includes(at)) {
      groups = groups.map((group) => group.filter((one) => one !== at)).filter((group) => group.length);
      tie = false;
    } else if (tie && groups.length) {
      groups[groups.length - 1] = [...groups.at(-1), at].sort((a, b) => a - b);
      tie = false;
    } else groups.push([at]);
    show();
    changed();
  }

  function toggleTie() {
    if (!groups.length || picked().length === count) return;
    tie = !tie;
    show();
  }

  function takeBack() {
    if (tie) tie = false;
    else if (groups.length) {
      groups.pop();
      show();
      return changed();
    }
    show();
  }

  show();
  return {
    cards,
    question,
    verdict() {
      const ranks = task.responses.map((_, at) => groups.findIndex((group) => group.includes(at)));
      return groups.length ? { ranks: ranks.map((rank) => (rank < 0 ? null : rank)) } : null;
    },
    missing() {
      const open = task.responses.map((_, at) => at).filter((at) => !picked().includes(at));
      return open.length ? `Still to place: ${open.map((at) => at + 1).join(", ")}.` : "";
    },
    says: () => `Order: ${groups.map((group) => group.map((at) => at + 1).join(" equal to ")).join(", then ")}. ${said.textContent}`,
    set(given) {
      const ranks = Array.isArray(given?.ranks) && given.ranks.length === count ? given.ranks : [];
      const levels = [...new Set(ranks.filter((rank) => Number.isInteger(rank)))].sort((a, b) => a - b);
      groups = levels.map((level) => ranks.flatMap((rank, at) => (rank === level ? [at] : [])));
      tie = false;
      show();
    },
    key(event) {
      const number = digit(event);
      if (number >= 1 && number <= count) pick(number - 1);
      else if (event.key.toLowerCase() === "t") toggleTie();
      else if (event.key === "Backspace" || event.key === "Delete") takeBack();
      else return false;
      return true;
    },
  };
}
