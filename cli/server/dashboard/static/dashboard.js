"use strict";
// Answers as they grow, keys for the queue, questions before acts that move the model, ctrl+Enter to
// send. Without it the pages work all the same.
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
const asking = document.querySelector("form[data-ask]");
if (asking && window.ReadableStream) {
  const place = document.querySelector("[data-answers]");
  const card = (name) => {
    const section = document.createElement("section");
    const [title, text] = ["h2", "p"].map((kind) => section.appendChild(document.createElement(kind)));
    section.className = "card";
    title.textContent = name;
    text.className = "answer grows";
    return section;
  };
  const told = {
    piece: (data) => {
      place.children[data.side].querySelector(".answer").append(data.text);
    },
    answer: (data) => {
      place.children[data.side].outerHTML = data.html; // made, and escaped, by the server
    },
    problem: (data) => {
      for (const text of place.querySelectorAll(".grows")) text.classList.remove("grows");
      const message = place.appendChild(document.createElement("p"));
      message.className = "warnings";
      message.textContent = data.message;
    },
  };
  const hear = (event) => {
    const lines = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s)));
    if (lines.event) told[lines.event](JSON.parse(lines.data));
  };
  const ask = async () => {
    const fields = new FormData(asking);
    place.replaceChildren(card(fields.get("left") || "base"), card(fields.get("right") || "head"));
    const response = await fetch(asking.action, {
      method: "POST",
      body: new URLSearchParams(fields),
      headers: { Accept: "text/event-stream" },
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      events.forEach(hear);
    }
  };
  asking.addEventListener("submit", (event) => {
    event.preventDefault();
    const button = asking.querySelector("button");
    button.disabled = true;
    ask()
      .catch((error) => told.problem({ message: error.message }))
      .finally(() => (button.disabled = false));
  });
}
if (document.querySelector("[data-reload]")) setTimeout(() => window.location.reload(), 1500);
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
