// What htmx does not do by itself: wait while somebody reads, and say when the server is gone.
(() => {
  "use strict";
  const offline = () => document.getElementById("offline");
  const isLive = (element) => element && element.id === "live";

  // A picture that is drawn anew takes away what is being selected, and costs the server something behind other windows.
  const isBusy = () => document.hidden || !document.getSelection().isCollapsed;

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (isLive(event.detail.elt) && isBusy()) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) htmx.trigger("#live", "look");
  });
  for (const trouble of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
    document.addEventListener(trouble, () => { offline().hidden = false; });
  }
  document.addEventListener("htmx:afterSwap", () => {
    offline().hidden = true;
    // Read out once it changes, and not at each look.
    const told = document.getElementById("told");
    const now = document.getElementById("live").dataset.told;
    if (told.textContent !== now) told.textContent = now;
  });
})();
