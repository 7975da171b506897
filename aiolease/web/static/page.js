// What htmx does not do by itself: wait while somebody selects a text, and say when the server is gone.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const isLive = (element) => element && element.id === "live";
  // A page that is drawn anew takes away what is being selected.
  const isSelecting = () => !document.getSelection().isCollapsed;

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (!isLive(event.detail.elt)) return;
    byId("held").hidden = !isSelecting();
    if (isSelecting() || document.hidden) event.preventDefault(); // nobody looks at a page behind another
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) htmx.trigger("#live", "look");
  });
  for (const trouble of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
    document.addEventListener(trouble, () => { byId("offline").hidden = false; });
  }
  document.addEventListener("htmx:afterSwap", () => {
    byId("offline").hidden = true;
    // Read out once it changes, and not at each look.
    const now = byId("live").dataset.told;
    if (byId("told").textContent !== now) byId("told").textContent = now;
  });
})();
