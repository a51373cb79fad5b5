"use strict";
// Keys for the queue, questions before acts that move the model, and ctrl+Enter to send.
for (const button of document.querySelectorAll("button[data-confirm]")) {
  button.addEventListener("click", (event) => {
    if (!window.confirm(button.dataset.confirm)) event.preventDefault();
  });
}
for (const area of document.querySelectorAll("textarea[data-submit]")) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) area.form.requestSubmit();
  });
}
const queue = document.querySelector("form[data-queue]");
if (queue) {
  const rows = [...queue.querySelectorAll("tr[data-row]")];
  let here = -1;
  const go = (place) => {
    if (rows[here]) rows[here].classList.remove("here");
    here = Math.max(0, Math.min(rows.length - 1, place));
    rows[here].classList.add("here");
    rows[here].scrollIntoView({ block: "nearest" });
  };
  const mark = () => rows[here] && rows[here].querySelector("input[type=checkbox]").click();
  const decide = (what) => {
    const button = queue.querySelector(`button[value=${what}]`);
    if (!button) return;
    if (!queue.querySelector("input[name=number]:checked")) mark();
    queue.requestSubmit(button);
  };
  const keys = {
    j: () => go(here + 1),
    k: () => go(here - 1),
    x: mark,
    a: () => decide("approve"),
    r: () => decide("reject"),
    Enter: () => rows[here] && rows[here].querySelector("a").click(),
  };
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input:not([type=checkbox]), textarea, select, button, a");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}
