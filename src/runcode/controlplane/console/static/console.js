// What the pages can do beyond plain forms: copying, saying that the server is away. Everything works without it.
"use strict";

// htmx hands what our own server rendered to the parser as text. That one way in is open; text never becomes
// a script or a script's address, whatever is found on a page.
if (window.trustedTypes) {
  window.trustedTypes.createPolicy("default", { createHTML: (text) => text });
}

function addCopyButtons(within) {
  for (const box of within.querySelectorAll(".type")) {
    if (!navigator.clipboard || box.querySelector("button")) continue;
    const text = box.querySelector("pre").textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy: " + text.trim().slice(0, 60));
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text.trim());
        button.textContent = "Copied";
        announce("Copied");
      } catch {
        button.textContent = "Select it";
        window.getSelection().selectAllChildren(box.querySelector("pre"));
      }
      window.setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    box.append(button);
  }
}

function announce(text) {
  const place = document.getElementById("said");
  if (place) place.textContent = text;
}

function showAway(away) {
  const place = document.getElementById("away");
  if (place) place.hidden = !away;
}

let lastSaid = "";
document.addEventListener("DOMContentLoaded", () => addCopyButtons(document));
document.addEventListener("htmx:afterSettle", (event) => {
  addCopyButtons(event.target);
  // The states may have changed: whoever does not see them hears it once.
  const said = event.target.querySelector && event.target.querySelector("[data-said]");
  if (said && said.dataset.said !== lastSaid) {
    lastSaid = said.dataset.said;
    announce(lastSaid);
  }
});
// A person acts anew: what went wrong before is no news any more.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.matches("form")) document.getElementById("notice").replaceChildren();
});
document.addEventListener("htmx:sendError", () => showAway(true));
document.addEventListener("htmx:afterOnLoad", () => showAway(false));
