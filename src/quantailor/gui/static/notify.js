// A word from the browser when a job ends while nobody looks. Whether it may is asked once, and only by a click.
(() => {
  const ASKED = "quantailor-notify-asked";
  const canAsk = () => "Notification" in window && isSecureContext && Notification.permission === "default" && !localStorage.getItem(ASKED);
  const offer = () => document.body.classList.toggle("qt-can-ask", canAsk());
  const ask = async () => {
    localStorage.setItem(ASKED, "1");
    await Notification.requestPermission();
    offer();
  };
  // Tabs of one server tell of the same end under one tag, so that it is shown once.
  const tell = (tag, title, body) => {
    if (!("Notification" in window) || Notification.permission !== "granted" || document.hasFocus()) return;
    const shown = new Notification(title, { body, tag });
    shown.onclick = () => (window.focus(), shown.close());
  };
  document.addEventListener("DOMContentLoaded", offer);
  window.quantailorNotify = { ask, tell };
})();
// Quasar's bar on top of the page, which shows that something is fetched, has no name for screen readers.
addEventListener("load", () => document.querySelectorAll(".q-loading-bar").forEach((bar) => bar.setAttribute("aria-label", "Loading")));
