// Keeps an open page up to date. The page is whole without it; everything it shows comes from the server as it stands.
"use strict";
(() => {
  const shift = Number(document.body.dataset.now) - Date.now();  // the server's clock minus this one's
  if (!document.body.dataset.now) return;
  const FRESH_MS = 5000, CHARTS_MS = 15000;

  // New values go where the page has a place for them, as the server has written them: "23.4 °C".
  function show(samples) {
    for (const { node, time_ms, values } of samples) {
      for (const [name, text] of Object.entries(values)) {
        const place = document.querySelector(`[data-live="${CSS.escape(`${node}/${name}`)}"]`);
        if (place) place.textContent = text.split(" ")[0];
      }
      for (const last of document.querySelectorAll('[data-live="last"]')) {
        last.dataset.time = Math.max(Number(last.dataset.time), time_ms);
      }
    }
    tick();
  }

  function words(seconds) {
    const s = Math.max(0, seconds);
    if (s < 120) return `${Math.round(s)} s`;
    if (s < 7200) return `${Math.round(s / 60)} min`;
    if (s < 172800) return `${Math.round(s / 3600)} h`;
    return `${Math.round(s / 86400)} days`;
  }

  function tick() {
    for (const place of document.querySelectorAll("[data-time]")) {
      place.textContent = `${words((Date.now() + shift - Number(place.dataset.time)) / 1000)} ago`;
    }
  }

  // What is more than a value comes with a fresh copy of the page, piece by piece, but for the piece in use.
  async function refresh() {
    if (document.hidden) return;
    let fresh;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok) return;
      if (answer.redirected) { location.reload(); return; }
      fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    } catch { return; }  // the server is away: the ages go on, and tell it
    for (const piece of document.querySelectorAll("[data-piece]")) {
      const other = fresh.querySelector(`[data-piece="${piece.dataset.piece}"]`);
      if (!other || piece.isEqualNode(other)) continue;  // a button that stays as it is stays under the finger, too
      if (!piece.contains(document.activeElement)) piece.replaceWith(other);
    }
    // Charts stay as long as they are the same ones, and are only drawn anew: others than before are put in their place.
    const charts = document.querySelector(".charts"), others = fresh.querySelector(".charts");
    const names = (section) => [...section.querySelectorAll("img:not(.plot img)")].map((image) => image.alt).join("\n");
    if (charts && others && names(charts) !== names(others)) charts.replaceWith(others);
    for (const image of document.querySelectorAll(".charts img, .charts source")) {
      const key = image.tagName === "IMG" ? "src" : "srcset", address = new URL(image[key], location.href);
      address.searchParams.set("at", String(Math.floor(Date.now() / CHARTS_MS)));
      if (image[key] !== address.href) image[key] = address;
    }
  }

  const events = new EventSource("/events");
  events.onmessage = (event) => show(JSON.parse(event.data).samples);
  setInterval(tick, 1000);
  setInterval(refresh, FRESH_MS);
  document.addEventListener("visibilitychange", refresh);
})();
