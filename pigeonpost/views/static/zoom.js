// Crosshair of a chart: shows time and values, and selects a time range. The page is complete without this script: its
// tables contain the same values, and its links open other time ranges.
//
// Pointer: move to read values, drag to select a time range. Keys: the arrow keys move the line, Shift with an arrow key
// selects a range, Enter opens the selected range, and Escape clears the selection.
"use strict";
(() => {
  const HINT = "Move the pointer over the chart to read values, or drag to select a time range. "
    + "Keyboard: arrow keys, Shift + arrow keys, Enter.";

  function number(value) {  // the server's format: up to four significant digits
    if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
    if (Math.abs(value) < 0.01) return String(Number(value.toPrecision(3)));
    return String(Number(value.toFixed(Math.abs(value) >= 100 ? 1 : Math.abs(value) >= 10 ? 2 : 3)));
  }

  function start(plot) {
    const image = plot.querySelector("img");
    const hair = plot.appendChild(document.createElement("div"));
    const chosen = plot.appendChild(document.createElement("div"));
    const told = document.createElement("output");
    plot.after(told);
    hair.className = "hair";
    chosen.className = "chosen-span";
    told.className = "readout";
    told.textContent = HINT;
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `Chart. ${HINT}`);
    let data = null, asking = null, at = -1, anchor = -1, down = null;  // down: event of the pressed pointer

    // Return the chart's numbers, or null. They are fetched on first use, and again after the image has changed.
    async function numbers() {
      if (data) return data;
      asking ??= (async () => {
        const answer = await fetch(`${image.currentSrc.replace("/chart.svg", "/chart.json")}&units=shown`);
        if (!answer.ok) throw new Error(String(answer.status));
        return answer.json();
      })();
      try {
        data = await asking;
        data.byPlace = data.series.map((one) => new Map(one.columns.map((column) => [column.place, column])));
      } catch {
        data = null;  // the server is not reachable or busy; the next movement tries again
      } finally {
        asking = null;
      }
      return data;
    }

    function placeOf(event) {
      const box = image.getBoundingClientRect(), { width, left, right } = data.plot;
      const x = (event.clientX - box.left) * width / box.width;
      return Math.min(data.times.length - 1, Math.max(0, Math.floor((x - left) / (right - left) * data.times.length)));
    }

    // Return the left edge of a column, as a fraction of the image's width.
    function part(place) {
      const { width, left, right } = data.plot;
      return (left + place * (right - left) / data.times.length) / width;
    }

    // Return one text per series, from this column or else from the nearest one within 3 that has values: the columns of a
    // sensor with rare samples are mostly empty.
    function values(place) {
      return data.series.map((one, k) => {
        let near = null;
        for (let d = 0; d <= 3 && !near; d += 1) {
          near = data.byPlace[k].get(place - d) ?? data.byPlace[k].get(place + d) ?? null;
        }
        const name = data.series.length > 1 ? `${one.sensor} of ${one.node}` : one.sensor;
        if (!near) return `${name}: no value`;
        const range = near.low === near.high ? "" : ` (${number(near.low)} to ${number(near.high)})`;
        return `${name}: ${number(near.mean)}${one.unit ? ` ${one.unit}` : ""}${range}`;
      });
    }

    function show(place) {
      at = place;
      hair.style.left = `${100 * part(place + 0.5)}%`;
      hair.hidden = false;
      const [first, last] = [Math.min(anchor, at), Math.max(anchor, at)];
      chosen.hidden = anchor < 0 || first === last;
      chosen.style.left = `${100 * part(first)}%`;
      chosen.style.width = `${100 * (part(last + 1) - part(first))}%`;
      const times = data.shown_times;  // in the time zone of the server, not of the browser
      const when = chosen.hidden ? times[place] : `${times[first]} to ${times[last]}`;
      told.replaceChildren(...[when, ...values(place)].map((text, k) => {
        const line = document.createElement(k ? "span" : "b");
        line.textContent = text;
        return line;
      }));
    }

    function letGo() {
      at = anchor = -1;
      down = null;
      hair.hidden = chosen.hidden = true;
      told.textContent = HINT;
    }

    // Open the page of this chart for the time range from the first to the last column.
    function open(first, last) {
      const begin = Date.parse(data.from), width = (Date.parse(data.to) - begin) / data.times.length;
      const query = new URLSearchParams(plot.dataset.page);
      query.delete("span");
      query.set("from", new Date(begin + first * width).toISOString());
      query.set("to", new Date(begin + (last + 1) * width).toISOString());
      location.href = `${document.body.dataset.root}chart?${query}`;
    }

    plot.addEventListener("pointermove", async (event) => {
      if (await numbers()) show(placeOf(event));
    });
    plot.addEventListener("pointerdown", async (event) => {
      if (event.button || !event.isPrimary) return;
      event.preventDefault();  // otherwise the browser would drag the image
      plot.focus({ preventScroll: true });
      plot.setPointerCapture(event.pointerId);
      down = event;
      if (!await numbers() || down !== event) return;
      anchor = placeOf(event);
      show(anchor);
    });
    plot.addEventListener("pointerup", async (event) => {
      const began = down;
      down = null;
      if (!began || !await numbers()) return;  // a tap may end before the numbers are loaded
      const first = Math.min(placeOf(began), placeOf(event)), last = Math.max(placeOf(began), placeOf(event));
      anchor = -1;
      if (last - first >= 3) open(first, last);  // shorter movements are taps
      else show(placeOf(event));
    });
    plot.addEventListener("pointercancel", letGo);
    plot.addEventListener("pointerleave", () => { if (!down && document.activeElement !== plot) letGo(); });
    plot.addEventListener("blur", () => { if (!down) letGo(); });

    plot.addEventListener("keydown", async (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity };
      const step = steps[event.key];
      if (event.key === "Escape") { letGo(); return; }
      if (event.key === "Enter" && data && anchor >= 0 && anchor !== at) {
        open(Math.min(anchor, at), Math.max(anchor, at));
        return;
      }
      if (step === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      if (!await numbers()) return;
      const last = data.times.length - 1, from = at < 0 ? (step < 0 ? last + 1 : -1) : at;
      if (!event.shiftKey) anchor = -1;
      else if (anchor < 0) anchor = Math.max(at, 0);
      show(Math.min(last, Math.max(0, from + step)));
    });
    image.addEventListener("load", () => { data = null; });
    letGo();
  }

  for (const plot of document.querySelectorAll("figure.plot[data-page]")) start(plot);
})();
