// A hair line with time and values over a chart, and a span chosen in it. The page is whole without it: the same values
// stand in its tables, and its links lead through time.
//
// Pointer: move to read, drag to choose a span. Keys: arrows move the line, with Shift they choose, Enter shows what is
// chosen, Escape lets go.
"use strict";
(() => {
  const HINT = "Move over the chart to read values, drag to choose a span. Arrow keys do the same, with Shift and Enter.";

  function number(value) {  // as the server writes them: up to four figures that count
    if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
    if (Math.abs(value) < 0.01) return String(Number(value.toPrecision(3)));
    return String(Number(value.toFixed(Math.abs(value) >= 100 ? 1 : Math.abs(value) >= 10 ? 2 : 3)));
  }

  function clock(text) {  // the server's local time, as it has written it: 2026-11-20T16:36:10.000+01:00
    return `${text.slice(0, 10)} ${text.slice(11, 19)}`;
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
    let data = null, asking = null, at = -1, anchor = -1, down = null;  // down: where the pointer was pressed

    // The numbers are fetched when they are wanted first, and again when the picture is another one.
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
        data = null;  // the server is away, or busy: the next movement asks again
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

    // Where a place begins, in parts of the picture's width.
    function part(place) {
      const { width, left, right } = data.plot;
      return (left + place * (right - left) / data.times.length) / width;
    }

    // Of each series the values at the place, or at the nearest one that has some: a rare sensor's column is narrow.
    function values(place) {
      return data.series.map((one, k) => {
        let near = null;
        for (let d = 0; d <= 3 && !near; d += 1) {
          near = data.byPlace[k].get(place - d) ?? data.byPlace[k].get(place + d) ?? null;
        }
        const name = data.series.length > 1 ? `${one.sensor} of ${one.node}` : one.sensor;
        if (!near) return `${name}: nothing`;
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
      const when = chosen.hidden ? clock(data.times[place]) : `${clock(data.times[first])} to ${clock(data.times[last])}`;
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

    // To the page of this chart from one place to another.
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
      event.preventDefault();  // else the picture itself would be dragged
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
      if (!began || !await numbers()) return;  // a tap may be over before they are there
      const first = Math.min(placeOf(began), placeOf(event)), last = Math.max(placeOf(began), placeOf(event));
      anchor = -1;
      if (last - first >= 3) open(first, last);  // less is a trembling finger
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
