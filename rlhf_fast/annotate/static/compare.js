// The comparison page: one item after another, by keyboard, mouse or touch. With data-mode="decide" it is the page on
// which an administrator decides a disagreement.

import { Refusal, ask, make, put, requestId } from "./server.js";
import { Ranking } from "./ranking.js";
import { Tray } from "./tray.js";

const $ = (id) => document.getElementById(id);
const main = $("main");
const deciding = main.dataset.mode === "decide";
const LOOK_AGAIN = 20000;

let task = null; // the item on the page
let ranking = null;
let view = "read"; // or "marks", "raw"
let marked = null; // the responses with their differences marked, once asked for
let busy = false;
let sending = false; // an answer is on its way
let lookAgain = 0;
const tray = new Tray($("tray"), (place, rank) => change(() => ranking.move(place, rank)), (place) => choose(place));

// Time on the item: only while the page is seen.

let seen = 0;
let since = null;

function clock(start) {
  const now = performance.now();
  if (since !== null) seen += (now - since) / 1000;
  since = start && !document.hidden ? now : null;
}

document.addEventListener("visibilitychange", () => clock(task !== null));

// Showing

function say(text) {
  $("live").textContent = "";
  setTimeout(() => { $("live").textContent = text; }, 30);
}

function banner(text, kind = "warning") {
  $("banner").hidden = !text;
  $("banner").className = kind;
  $("banner").textContent = text;
}

function waiting(text) {
  banner(text && `${text} Your answer is kept on this page, and is sent again.`);
  document.body.classList.toggle("waiting", Boolean(text));
}

function show(next, progress, announcement = "") {
  clock(false);
  [task, marked, view, seen, since] = [next, null, "read", 0, null];
  clearTimeout(lookAgain);
  pace(progress);
  $("task").hidden = $("dock").hidden = !task;
  $("done").hidden = Boolean(task);
  $("revising").hidden = true;
  banner("");
  if (!task) {
    ranking = null;
    if (!deciding) lookAgain = setTimeout(next_, LOOK_AGAIN);
    $("done").querySelector("h2").focus();
    say(`${announcement} Nothing left for now.`);
    return;
  }
  ranking = new Ranking(task.responses.length, task.said);
  $("note").value = task.said ? task.said.note : "";
  restoreDraft();
  $("note-box").open = Boolean($("note").value);
  if (task.said && !deciding) {
    $("revising").textContent = "You have answered this item. Submit another answer to replace it, or ";
    $("revising").append(make("button", { type: "button", id: "go-on" }, "go on"));
    $("go-on").addEventListener("click", next_);
    $("revising").hidden = false;
  }
  put($("prompt"), task.prompt);
  responses();
  choices();
  update();
  window.scrollTo(0, 0);
  $("prompt-title").focus({ preventScroll: true });
  const similar = task.similar ? " They differ in a few words: D marks them." : "";
  say(`${announcement} Item ${task.position} of ${task.total}, ${task.responses.length} responses.${similar}`);
  clock(true);
}

function responses() {
  const cards = task.responses.map((html, place) => {
    const head = make("button", { type: "button", class: "choose", "data-place": place, "aria-pressed": "false" },
      make("kbd", { "aria-hidden": "true" }, String(place + 1)), make("span", { class: "name" }, `Response ${place + 1}`),
      make("span", { class: "rank" }));
    head.addEventListener("click", () => choose(place));
    const text = make("div", { class: "text", dir: "auto" });
    const card = make("article", { class: "response", "aria-labelledby": `name-${place}` },
      make("h3", { id: `name-${place}` }, head), text);
    return card;
  });
  $("responses").dataset.count = task.responses.length;
  $("responses").replaceChildren(...cards);
  texts();
}

function texts() {
  const html = view === "marks" ? marked : task.responses;
  $("responses").querySelectorAll(".text").forEach((element, place) => {
    if (view === "raw") {
      element.replaceChildren(make("p", { class: "plain" }, task.texts[place]));
    } else if (!task.texts[place].trim()) {
      element.replaceChildren(make("p", { class: "empty" }, "an empty response"));
    } else {
      put(element, html[place]);
    }
  });
  $("marks").setAttribute("aria-pressed", String(view === "marks"));
  $("raw").setAttribute("aria-pressed", String(view === "raw"));
  $("marks").classList.toggle("hint", task.similar && view !== "marks");
}

function choices() {
  const two = task.responses.length === 2;
  const button = (id, text, key, action) => {
    const made = make("button", { type: "button", id, "aria-pressed": "false", "aria-keyshortcuts": key },
      text, " ", make("kbd", {}, key));
    made.addEventListener("click", action);
    return made;
  };
  const better = (place) => {
    const made = button(`choose-${place}`, String(place + 1), String(place + 1), () => choose(place));
    made.firstChild.after(make("span", { class: "wide" }, " is better"));
    made.setAttribute("aria-label", `Response ${place + 1} is better`);
    return made;
  };
  const tie = button("tie", "Tie", "T", () => change(() => ranking.tie()));
  const bad = button("bad", two ? "Both bad" : "All bad", "B", () => change(() => ranking.bad()));
  $("choices").replaceChildren(...(two ? [better(0), tie, better(1), bad] : [tie, bad]));
  $("tray").hidden = two;
  if (!two) tray.build(task.responses.length);
}

function update() {
  const two = ranking.count === 2;
  $("responses").querySelectorAll(".response").forEach((card, place) => {
    const rank = ranking.ranks[place];
    const best = rank === 1 && !(two && ranking.isTie);
    card.classList.toggle("best", best);
    card.classList.toggle("bad", ranking.allBad);
    const words = ranking.allBad ? "bad" : rank === null ? "" : ranking.isTie ? "tie" : two ? (best ? "better" : "") : place_(rank);
    card.querySelector(".rank").textContent = words;
    card.querySelector(".choose").setAttribute("aria-pressed", String(rank !== null && (!two || best)));
    if (two) $(`choose-${place}`).setAttribute("aria-pressed", String(best));
  });
  $("tie").setAttribute("aria-pressed", String(two ? ranking.isTie : ranking.isTie || ranking.tying));
  $("bad").setAttribute("aria-pressed", String(ranking.allBad));
  if (!two) tray.show(ranking);
  $("submit").classList.toggle("ready", ranking.complete);
  const hint = two ? "Choose 1 or 2, a tie, or both bad." : "Rank two or more, the best first.";
  $("said").textContent = ranking.tying ? "The next one you choose ties with the last." : ranking.words || hint;
}

function place_(rank) {
  return rank === 1 ? "best" : `${rank}${{ 2: "nd", 3: "rd" }[rank] || "th"}`;
}

function pace(progress) {
  const done = progress.answered + progress.skipped;
  $("progress").max = Math.max(1, progress.total);
  $("progress").value = done;
  const words = [`${done} of ${progress.total}`];
  if (progress.seconds !== null && progress.seconds !== undefined) {
    words.push(`${time(progress.seconds)} an item`);
    if (progress.seconds_left) words.push(`about ${time(progress.seconds_left)} left`);
  }
  $("pace").textContent = words.join(" · ");
}

function time(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// Changing an answer

function change(action) {
  if (!task || busy) return;
  action();
  update();
  saveDraft();
  say($("said").textContent);
}

function choose(place) {
  if (task && place < task.responses.length) change(() => ranking.choose(place));
}

function draftKey() {
  return `rlhf-fast draft ${main.dataset.mode} ${task.item}`;
}

// An answer that is begun outlives a reload, and comes back when it is undone.
function saveDraft() {
  const { ranks, allBad } = ranking;
  sessionStorage.setItem(draftKey(), JSON.stringify({ ranks, allBad, note: $("note").value }));
}

function restoreDraft() {
  const kept = JSON.parse(sessionStorage.getItem(draftKey()) || "null");
  if (task.said || !kept || kept.ranks.length !== ranking.count) return;
  [ranking.ranks, ranking.allBad, $("note").value] = [kept.ranks, kept.allBad, kept.note];
}

// Asking the server: one thing at a time

async function once(action) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    await action();
  } catch (error) {
    waiting("");
    banner(error instanceof Refusal ? error.message : `The page failed: ${error.message}. Reload it; nothing sent is lost.`);
    if (!(error instanceof Refusal)) throw error;
  } finally {
    busy = sending = false;
    document.body.classList.remove("busy");
  }
}

function said() {
  clock(true);
  ranking.tidy();
  return {
    item: task.item, order: task.order, ranks: ranking.ranks, all_bad: ranking.allBad, note: $("note").value.trim(),
    seconds: Math.round(seen * 100) / 100, request: requestId(),
  };
}

function submit() {
  if (!task || busy) return;
  if (!ranking.complete) {
    banner(`${$("said").textContent} Then submit.`, "warning");
    return;
  }
  once(async () => {
    sending = true;
    const { task: next, progress, votes } = await ask(deciding ? "/api/admin/decide" : "/api/vote", said(), waiting);
    show(next, progress, "Saved.");
    decideList(votes);
  });
}

function pass() {
  once(async () => {
    if (!task) return;
    const { ranks, all_bad, ...rest } = said();
    const { task: next, progress } = await ask("/api/skip", rest, waiting);
    show(next, progress, "Skipped.");
  });
}

function undo() {
  once(async () => {
    const back = await ask("/api/undo", { request: requestId() }, waiting);
    if (back.undone === null) {
      say("There is nothing to undo.");
      banner("There is nothing to undo.");
      return;
    }
    show(back.task, back.progress, "Undone.");
  });
}

function next_() {
  return once(async () => {
    const path = deciding ? `/api/admin/item/${encodeURIComponent(main.dataset.item)}` : "/api/next";
    const { task: next, progress, votes } = await ask(path, deciding ? undefined : {}, waiting);
    show(next, progress);
    decideList(votes);
  });
}

function decideList(votes) {
  if (!deciding) return;
  const list = document.querySelector("#votes ul");
  list.replaceChildren(...votes.map((vote) => make("li", {}, make("b", {}, vote.who), ` ${vote.summary}`,
    ...(vote.note ? [make("q", {}, vote.note)] : []))));
}

async function toggle(to) {
  if (!task) return;
  const asked = task;
  if (to === "marks" && view !== "marks" && marked === null) {
    const path = deciding ? "/api/admin/marked/" : "/api/marked/";
    const found = await ask(path + encodeURIComponent(task.item)).catch((error) => banner(error.message));
    if (!found || task !== asked) return;
    marked = found.responses;
  }
  view = view === to ? "read" : to;
  texts();
  say({ read: "Responses as read.", marks: "Differences are marked.", raw: "Responses as they were written." }[view]);
}

async function openAnswered() {
  const { answered } = await ask("/api/answered");
  const rows = answered.map((one) => {
    const when = new Date(one.at * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const row = make("button", { type: "button" }, make("span", { class: "asked-of" }, one.prompt),
      make("b", {}, one.summary), make("small", {}, when));
    row.addEventListener("click", () => {
      $("answered").close();
      once(async () => {
        const found = await ask(`/api/task/${encodeURIComponent(one.item_id)}`, undefined, waiting);
        show(found.task, found.progress);
      });
    });
    return make("li", {}, row);
  });
  $("answered-list").replaceChildren(...(rows.length ? rows : [make("li", { class: "empty" }, "Nothing yet.")]));
  open("answered");
}

function open(id) {
  const dialog = $(id);
  if (dialog && !dialog.open) dialog.showModal();
}

// Keys and buttons

const KEYS = {
  t: () => change(() => ranking.tie()), b: () => change(() => ranking.bad()), s: () => deciding || pass(),
  u: () => deciding || undo(), d: () => toggle("marks"), w: () => toggle("raw"), backspace: () => change(() => ranking.clear()),
  n: () => { $("note-box").open = true; $("note").focus(); }, "?": () => open("keys"),
};

let pointed = false; // the focus is where a pointer was, not where Tab has led
document.addEventListener("pointerdown", () => { pointed = true; });

document.addEventListener("keydown", (event) => {
  if (event.key === "Tab") pointed = false;
  const typing = event.target.closest("textarea, input, select");
  if (event.key === "Escape" && typing) return typing.blur();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return submit();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  if (key === "enter") {
    // Enter presses what Tab has led to; what was clicked keeps the focus, too, and is not meant.
    if (!pointed && event.target.closest("a, button, summary")) return;
    event.preventDefault();
    submit();
    return;
  }
  if (!$("use-keys").checked) return;
  if (/^[1-9]$/.test(key)) {
    event.preventDefault();
    choose(Number(key) - 1);
  } else if (KEYS[key]) {
    event.preventDefault();
    KEYS[key]();
  }
});

$("dock").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("note").addEventListener("input", () => { if (task) saveDraft(); });
$("marks").addEventListener("click", () => toggle("marks"));
$("raw").addEventListener("click", () => toggle("raw"));
$("look").addEventListener("click", next_);
if (!deciding) {
  $("undo").addEventListener("click", undo);
  $("pass").addEventListener("click", pass);
}
document.querySelectorAll("[data-open]").forEach((button) => {
  button.addEventListener("click", () => (button.dataset.open === "answered" ? openAnswered() : open(button.dataset.open)));
});
$("use-keys").checked = localStorage.getItem("rlhf-fast keys") !== "off";
$("use-keys").addEventListener("change", () => localStorage.setItem("rlhf-fast keys", $("use-keys").checked ? "on" : "off"));
window.addEventListener("beforeunload", (event) => { if (sending) event.preventDefault(); });

const guidelines = $("guidelines");
if (guidelines && localStorage.getItem("rlhf-fast guidelines") !== guidelines.textContent) {
  localStorage.setItem("rlhf-fast guidelines", guidelines.textContent);
  open("guidelines");
}
next_();
