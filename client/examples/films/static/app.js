/* Swaps in the pieces that have changed, so that a click does not load the page anew. Without this script every
   button works as a plain form. The server escapes; this file only places what it sends. */
"use strict";

const BUSY_MS = 1000;
const CALM_MS = 4000;
const TYPING_MS = 180;
const PAUSE_MS = 2000;

/** What this page shows, by piece: sent along so that only what changed comes back. */
let revisions = Object.fromEntries(new URLSearchParams(document.body.dataset.revisions));

function revisionQuery() {
  return new URLSearchParams(revisions).toString();
}

/** Where the reader is in a piece: focus, open details, scroll of the log. */
function placeIn(piece) {
  const active = piece.contains(document.activeElement) ? document.activeElement : null;
  return {
    key: active ? active.dataset.key : null,
    selection: active && active.type === "search" ? [active.selectionStart, active.selectionEnd] : null,
    details: new Map([...piece.querySelectorAll("details[data-key]")].map((each) => [each.dataset.key, each.open])),
  };
}

function putBack(piece, place) {
  for (const each of piece.querySelectorAll("details[data-key]")) {
    if (place.details.has(each.dataset.key)) each.open = place.details.get(each.dataset.key);
  }
  if (!place.key) return;
  const next = piece.querySelector(`[data-key="${CSS.escape(place.key)}"]`) || piece.querySelector(".tabs button");
  if (!next) return;
  next.focus({ preventScroll: true });
  if (place.selection && next.type === "search") next.setSelectionRange(...place.selection);
}

/** Whether what is typed in a piece has not been sent for long enough to be sure that it is all. */
function isTyping(piece) {
  const active = document.activeElement;
  return piece.contains(active) && active.matches("input[type=search]") && Date.now() - typedAt < PAUSE_MS;
}

/** Puts pieces in; the names of those that must wait, because somebody is typing in them. */
function swap(pieces, told) {
  const waiting = [];
  for (const [id, html] of Object.entries(pieces)) {
    const piece = document.getElementById(id);
    if (!piece) continue;
    if (!told && isTyping(piece)) {
      waiting.push(id);
      continue;
    }
    const place = placeIn(piece);
    piece.innerHTML = html;
    putBack(piece, place);
    mark(piece, told);
  }
  return waiting;
}

/** A piece that changed by itself shows it for a moment. */
function mark(piece, told) {
  if (told || !piece.matches(".device")) return;
  piece.classList.remove("fresh");
  requestAnimationFrame(() => piece.classList.add("fresh"));
}

function take(answer, told) {
  if (revisions.app !== answer.revisions.app) {
    location.reload(); // the app was started again: tokens and numbers are others
    return true;
  }
  const waiting = Object.fromEntries(swap(answer.pieces, told).map((id) => [id, revisions[id] ?? ""]));
  revisions = { ...answer.revisions, ...waiting };
  return answer.busy;
}

async function send(form, button) {
  const body = new URLSearchParams(new FormData(form));
  if (button && button.name) body.set(button.name, button.value);
  const answer = await fetch(form.action, { method: "POST", body, headers: { "X-Pieces": revisionQuery() || "none" } });
  if (!answer.ok) throw new Error(await answer.text());
  take(await answer.json(), true);
  hurry();
}

let timer = 0;

function hurry() {
  clearTimeout(timer);
  timer = setTimeout(look, BUSY_MS);
}

async function look() {
  let busy = false;
  try {
    if (!document.hidden) {
      const answer = await fetch(`/live?${revisionQuery()}`);
      if (answer.ok) busy = take(await answer.json(), false);
      away(false);
    }
  } catch {
    away(true); // the app was stopped: ask again later
  }
  clearTimeout(timer);
  timer = setTimeout(look, busy ? BUSY_MS : CALM_MS);
}

/** Says that what is shown is old, because the app does not answer. */
function away(is) {
  document.getElementById("away").hidden = !is;
  document.body.classList.toggle("is-away", is);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("[data-plain]")) return;
  event.preventDefault();
  form.classList.add("sent");
  send(form, event.submitter)
    .catch((error) => (error instanceof TypeError ? away(true) : location.reload())) // a network error, or a refusal
    .finally(() => form.classList.remove("sent"));
});

document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-auto]");
  if (form) form.requestSubmit();
});

let typing = 0;
let typedAt = 0;

document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-live]");
  if (!form) return;
  typedAt = Date.now();
  clearTimeout(typing);
  typing = setTimeout(() => form.requestSubmit(), TYPING_MS);
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-show]");
  if (!link) return;
  event.preventDefault();
  show(link.dataset.show);
  history.replaceState(null, "", link.href);
});

/** One person at a time where the screen is narrow. */
function show(number) {
  document.body.dataset.shown = number;
  for (const link of document.querySelectorAll("a[data-show]")) {
    if (link.dataset.show === number) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  window.scrollTo({ top: 0 });
}

look();
