// The ranking of three or more responses as slots with numbers in them, which can be dragged or moved by arrows.

import { make } from "./server.js";

export class Tray {
  // moved(place, rank) is called when a number was put somewhere, rank null: taken out; chosen(place) when it was clicked.
  constructor(element, moved, chosen) {
    this.element = element;
    this.moved = moved;
    this.chosen = chosen;
    this.dropped = false;
    this.slots = [];
    this.chips = [];
  }

  build(count) {
    this.slots = [null, ...Array.from({ length: count }, (_, i) => i + 1)].map((rank) => {
      const name = rank === null ? "not ranked" : rank === 1 ? "best" : ordinal(rank);
      const slot = make("div", { class: rank === null ? "slot none" : "slot", role: "group", "aria-label": name });
      slot.append(make("span", { class: "slot-name", "aria-hidden": "true" }, name));
      slot.rank = rank;
      return slot;
    });
    this.chips = Array.from({ length: count }, (_, place) => {
      const chip = make("button", { type: "button", class: "chip", "data-place": place }, String(place + 1));
      chip.addEventListener("keydown", (event) => this.arrow(event, place));
      chip.addEventListener("pointerdown", (event) => this.drag(event, place));
      chip.addEventListener("click", () => this.dropped || this.chosen(place));
      return chip;
    });
    this.element.replaceChildren(...this.slots);
  }

  show(ranking) {
    const focused = document.activeElement;
    this.chips.forEach((chip, place) => {
      const rank = ranking.ranks[place];
      chip.rank = rank;
      const slot = this.slots.find((one) => one.rank === rank);
      if (chip.parentElement !== slot) slot.append(chip);
      const at = rank === null ? "not ranked" : `rank ${rank}`;
      chip.setAttribute("aria-label", `Response ${place + 1}: ${at}. Arrow keys move it.`);
    });
    if (focused && focused.classList.contains("chip")) focused.focus();
  }

  arrow(event, place) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const ranks = this.slots.map((slot) => slot.rank);
    const at = ranks.indexOf(this.chips[place].rank) + step;
    if (at >= 0 && at < ranks.length) this.moved(place, ranks[at]);
  }

  drag(event, place) {
    if (event.button !== 0) return;
    const chip = this.chips[place];
    const from = { x: event.clientX, y: event.clientY };
    let moving = false;
    const over = (point) => {
      const found = document.elementsFromPoint(point.clientX, point.clientY);
      return this.slots.find((slot) => found.includes(slot));
    };
    const move = (point) => {
      const [dx, dy] = [point.clientX - from.x, point.clientY - from.y];
      if (!moving && Math.hypot(dx, dy) < 5) return;
      moving = true;
      chip.classList.add("dragged");
      chip.style.transform = `translate(${dx}px, ${dy}px)`;
      this.slots.forEach((slot) => slot.classList.toggle("over", slot === over(point)));
    };
    const end = (point) => {
      chip.removeEventListener("pointermove", move);
      chip.removeEventListener("pointerup", end);
      chip.removeEventListener("pointercancel", end);
      chip.classList.remove("dragged");
      chip.style.transform = "";
      this.slots.forEach((slot) => slot.classList.remove("over"));
      if (!moving) return;
      this.dropped = true; // the click that follows is the end of the drag
      setTimeout(() => { this.dropped = false; }, 0);
      const slot = point.type === "pointerup" && over(point);
      if (slot) this.moved(place, slot.rank);
    };
    chip.setPointerCapture(event.pointerId);
    chip.addEventListener("pointermove", move);
    chip.addEventListener("pointerup", end);
    chip.addEventListener("pointercancel", end);
  }
}

function ordinal(n) {
  return `${n}${{ 1: "st", 2: "nd", 3: "rd" }[n] || "th"}`;
}
