// Live updates of an open page. The page is complete without this script. All texts are shown as the server wrote them.
"use strict";
(() => {
  const shift = Number(document.body.dataset.now) - Date.now();  // server clock minus browser clock, in ms
  // The page "exited" is the response to a form. Without this, a reload would send the form again, to the next server.
  if (document.querySelector("[data-home]")) history.replaceState(null, "", document.querySelector(".brand").href);
  if (!document.body.dataset.now) return;
  const FRESH_MS = Number(document.querySelector("[data-fresh]")?.dataset.fresh ?? 5000), CHARTS_MS = 15000;

  // Show new values in the elements of the page that display them. The server has formatted them: "23.4 °C".
  function show(samples) {
    for (const { node, time_ms, values } of samples) {
      let taken = time_ms;  // node clock; converted to the server clock below if the card contains the offset
      for (const [name, text] of Object.entries(values)) {
        const place = document.querySelector(`[data-live="${CSS.escape(`${node}/${name}`)}"]`);
        if (!place) continue;
        const [value, ...unit] = text.split(" "), card = place.closest(".card");
        place.textContent = value;
        const its = place.parentElement.querySelector(".unit"), age = card?.querySelector(".age");
        if (its && value !== "–") its.textContent = unit.join(" ");
        if (age && value !== "–") age.dataset.time = taken = time_ms - Number(age.dataset.shift || 0);
        if (card) widen(card, value, time_ms);
      }
      for (const last of document.querySelectorAll('[data-live="last"]')) {
        last.dataset.time = Math.max(Number(last.dataset.time), taken);
      }
    }
    tick();
  }

  // Update the lowest and highest value of the day.
  function widen(card, text, time_ms) {
    const day = card.querySelector("[data-low]"), zone = card.parentElement.dataset.zone;
    const value = Number(text.replace("−", "-").replaceAll(",", ""));
    if (!day || zone === undefined || Number.isNaN(value)) return;
    const at = new Date(time_ms + zone * 60000).toISOString().slice(11, 16), [low, , high] = day.childNodes;
    if (value < Number(day.dataset.low)) {
      day.dataset.low = value;
      low.data = `low ${text} at ${at}`;
    }
    if (value > Number(day.dataset.high)) {
      day.dataset.high = value;
      high.data = `high ${text} at ${at}`;
    }
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

  // Fetch a new copy of the page, and replace each part that changed, except the part that has the focus.
  async function refresh() {
    if (document.hidden) return;
    const before = changes;
    let fresh;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok) return;
      if (answer.redirected) { location.reload(); return; }
      fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    } catch { return; }  // the server is not reachable; the user sees it from the growing ages
    if (changes !== before) return;  // this copy is older than the last submitted form
    exchange(fresh);
    for (const image of document.querySelectorAll(".charts img, .charts source")) {
      const key = image.tagName === "IMG" ? "src" : "srcset", address = new URL(image[key], location.href);
      address.searchParams.set("at", String(Math.floor(Date.now() / CHARTS_MS)));
      if (image[key] !== address.href) image[key] = address;
    }
  }

  function exchange(fresh) {
    for (const piece of document.querySelectorAll("[data-piece]")) {
      const other = fresh.querySelector(`[data-piece="${piece.dataset.piece}"]`);
      if (!other || piece.isEqualNode(other)) continue;  // do not replace a button while it is being pressed
      if (!piece.contains(document.activeElement)) piece.replaceWith(other);
    }
    // If the list of charts is unchanged, keep the elements: refresh() reloads their images. Otherwise replace them all.
    const [charts, others] = [document, fresh].map((one) => one.querySelector("#charts") ?? one.querySelector(".charts"));
    if (charts && others && shownIn(charts) !== shownIn(others)) charts.replaceWith(others);
  }

  function shownIn(charts) {
    const all = charts.querySelectorAll("img:not(.plot img), .folded");
    return [...all].map((one) => one.alt ?? one.dataset.chart).join("\n");
  }

  // Send a form that changes only this page, without leaving the page. Return false if that failed.
  let changes = 0;
  async function send(form, fields) {
    changes++;
    try {
      const headers = { Accept: "text/html" }, body = new URLSearchParams(fields);
      const answer = await fetch(form.action, { method: "POST", headers, body });
      if (!answer.ok) throw new Error(String(answer.status));
      changes++;
      history.replaceState(null, "", answer.url.split("#")[0]);
      exchange(new DOMParser().parseFromString(await answer.text(), "text/html"));
      return true;
    } catch { return false; }
  }

  document.addEventListener("submit", async (event) => {
    const form = event.target, pressed = event.submitter;
    if (!form.matches(".charts") || !pressed) return;
    event.preventDefault();
    const fields = [...new FormData(form), [pressed.name, pressed.value]];
    if (!await send(form, fields)) { location.reload(); return; }
    const others = { fold: "unfold", unfold: "fold", up: "down", down: "up" };
    const again = (name) => document.querySelector(`.charts [name="${name}"][value="${CSS.escape(pressed.value)}"]`);
    (again(pressed.name) ?? again(others[pressed.name]))?.focus();
  });

  // Update the buttons immediately when another node is selected.
  document.addEventListener("change", (event) => {
    const form = event.target.closest(".chooser");
    if (form) send(form, [...new FormData(form), ["do", "choose"]]);
  });

  // A page that shows only some of many nodes subscribes to these nodes alone.
  const only = document.querySelector("[data-nodes]")?.dataset.nodes;
  const events = new EventSource(`${document.body.dataset.root}events${only ? `?nodes=${only}` : ""}`);
  events.onmessage = (event) => show(JSON.parse(event.data).samples);
  setInterval(tick, 1000);
  setInterval(refresh, FRESH_MS);
  document.addEventListener("visibilitychange", refresh);
})();
