// On a page: bring every explorer to life. A widget mounts its own.
if (typeof document !== "undefined" && !globalThis.tpgpt2Widget) {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", tpgpt2.mountAll);
  else tpgpt2.mountAll();
}
