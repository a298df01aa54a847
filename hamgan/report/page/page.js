"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MARGIN = { left: 54, right: 12, top: 10, bottom: 24 };
  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };

  // ---- numbers -------------------------------------------------------------------------------------------------------
  const exact = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e6) return value.toExponential(2);
    return size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4)));
  };
  const brief = (value) => {
    const size = Math.abs(value);
    const trim = (number) => String(Number(number.toPrecision(4)));
    if (size >= 1e15 || (size > 0 && size < 1e-3)) return value.toExponential(0);
    for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
      if (size >= unit) return trim(value / (name === "k" ? 1e3 : unit)) + name;
    return trim(value);
  };
  const niceTicks = (low, high, count) => {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const unit = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
    const ticks = [];
    for (let k = Math.ceil(low / unit - 1e-9); k * unit <= high + unit * 1e-9; k++) ticks.push(Number((k * unit).toPrecision(12)));
    return ticks;
  };
  const logTicks = (low, high) => {
    const every = Math.max(1, Math.ceil(Math.log10(high / low) / 5));
    const factors = high / low < 100 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      if (power % every === 0 || factors.length > 1)
        for (const factor of factors) ticks.push(factor * 10 ** power);
    return ticks.filter((tick) => tick >= low && tick <= high);
  };
  const nearest = (sorted, value) => {
    let low = 0, high = sorted.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value) low = middle; else high = middle;
    }
    return value - sorted[low] <= sorted[high] - value ? low : high;
  };

  // ---- steps are the same width in every chart ----------------------------------------------------------------------
  let first = Infinity, last = -Infinity;
  for (const chart of data.charts)
    for (const line of chart.lines) {
      first = Math.min(first, line.x[0]);
      last = Math.max(last, line.x[line.x.length - 1]);
    }
  if (last - first < 1) { first -= 0.5; last += 0.5; }

  /* The range of values to show: all of them, unless a few would flatten the rest. */
  const valueRange = (chart, lines, full) => {
    const means = [];
    let low = Infinity, high = -Infinity;
    for (const line of lines)
      line.y.forEach((y, i) => {
        if (y === null) return;
        means.push(y);
        low = Math.min(low, line.low ? line.low[i] : y);
        high = Math.max(high, line.high ? line.high[i] : y);
      });
    if (!means.length) return { low: 0, high: 1, clipped: false, log: false, all: null };
    const all = [low, high];
    const log = chart.log && low > 0;
    if (chart.line !== null && !log) { low = Math.min(low, chart.line); high = Math.max(high, chart.line); }
    let clipped = false;
    if (!log && means.length > 20) {
      means.sort((a, b) => a - b);
      const a = means[Math.floor(means.length * 0.02)], b = means[Math.ceil(means.length * 0.98) - 1];
      const reach = Math.max(b - a, 1e-12) * 1.5;
      if (high - low > 4 * (b - a + 2 * reach)) {
        clipped = true;
        if (!full) { low = Math.max(low, a - reach); high = Math.min(high, b + reach); }
      }
    }
    if (log) {
      if (high / low < 1.5) { low /= 1.25; high *= 1.25; }
      return { low: low / (high / low) ** 0.04, high: high * (high / low) ** 0.04, clipped, log, all };
    }
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    // Counts and shares do not go below nothing.
    return { low: low >= 0 && low - pad < 0 ? 0 : low - pad, high: high + pad, clipped, log, all };
  };

  const setUp = (figure) => {
    const chart = data.charts[Number(figure.dataset.chart)];
    const plot = figure.querySelector(".plot"), at = figure.querySelector(".at"), spoken = figure.querySelector(".spoken");
    const values = [...figure.querySelectorAll(".legend .value")];
    const resting = values.map((value) => value.textContent);
    const shown = chart.lines.map(() => true);
    let full = false, cursor = null, scene = null;

    const toggle = document.createElement("button");
    toggle.type = "button";
    toggle.className = "full";
    toggle.hidden = true;
    toggle.addEventListener("click", () => { full = !full; draw(); });
    figure.querySelector(".legend").after(toggle);

    const draw = () => {
      const width = plot.clientWidth, height = plot.clientHeight;
      if (!width) return;
      const hadFocus = plot.contains(document.activeElement);
      plot.replaceChildren();
      const lines = chart.lines.filter((_, i) => shown[i]);
      const range = valueRange(chart, lines, full);
      const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
      const scale = range.log ? Math.log : (value) => value;
      const [bottom, top] = [scale(range.low), scale(range.high)];
      const X = (step) => MARGIN.left + ((step - first) / (last - first)) * inner.width;
      const Y = (value) => MARGIN.top + ((top - scale(value)) / (top - bottom)) * inner.height;

      toggle.hidden = !range.clipped;
      if (range.clipped)
        toggle.textContent = full ? "Show the usual range" : `Some values lie outside (${exact(range.all[0])} to ${exact(range.all[1])}): show all`;

      const summary = chart.lines.map((line, i) => `${line.name} last ${resting[i]}`).join(", ");
      const svg = make("svg", {
        width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "group",
        "aria-label": `${chart.title}, ${chart.unit}, by step: ${summary}. Left and right arrow keys read values.`,
      }, plot);
      for (const tick of range.log ? logTicks(range.low, range.high) : niceTicks(range.low, range.high, 4)) {
        const y = Y(tick);
        make("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }, svg);
        make("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, svg, brief(tick));
      }
      const base = height - MARGIN.bottom;
      make("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: base, y2: base }, svg);
      const ticks = niceTicks(first, last, Math.max(2, Math.floor(inner.width / 95))).filter(Number.isInteger);
      ticks.forEach((tick, i) => {
        make("line", { class: "axis", x1: X(tick), x2: X(tick), y1: base, y2: base + 4 }, svg);
        const isLast = i === ticks.length - 1;
        const label = brief(tick) + (isLast ? " steps" : "");
        const end = X(tick) + label.length * 3.5 > width;
        make("text", { x: end ? width : X(tick), y: base + 18, "text-anchor": end ? "end" : "middle" }, svg, label);
      });
      // A nested svg cuts off what lies outside of it.
      const frame = make("svg", { x: MARGIN.left - 4, y: MARGIN.top - 4, width: inner.width + 8, height: inner.height + 8,
        viewBox: `${MARGIN.left - 4} ${MARGIN.top - 4} ${inner.width + 8} ${inner.height + 8}` }, svg);
      if (chart.line !== null && chart.line >= range.low && chart.line <= range.high && !(range.log && chart.line <= 0))
        make("line", { class: "compare", x1: MARGIN.left, x2: width - MARGIN.right, y1: Y(chart.line), y2: Y(chart.line) }, frame);
      for (const mark of data.marks) {
        if (mark.step < first || mark.step > last) continue;
        const line = make("line", { class: `event ${mark.kind}`, x1: X(mark.step), x2: X(mark.step), y1: MARGIN.top, y2: base }, frame);
        make("title", {}, line, `${mark.kind} at step ${mark.step.toLocaleString("en-US")}: ${mark.reason}`);
      }
      chart.lines.forEach((line, i) => { if (shown[i]) drawLine(frame, line, i, X, Y, range, base); });
      if (chart.best && shown[0]) make("circle", { class: "ring c0", cx: X(chart.best[0]), cy: Y(chart.best[1]), r: 6 }, frame);
      const hair = make("line", { class: "cursor", y1: MARGIN.top, y2: base, visibility: "hidden" }, svg);
      const dots = chart.lines.map((_, i) => make("circle", { class: `dot f${i}`, r: 3.5, visibility: "hidden" }, frame));
      const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
      scene = { X, Y, hair, dots, steps, width };

      const pointAt = (event) => {
        if (!steps.length) return;
        const x = event.clientX - svg.getBoundingClientRect().left;
        show(nearest(steps, first + ((x - MARGIN.left) / inner.width) * (last - first)));
      };
      svg.addEventListener("pointermove", pointAt);
      svg.addEventListener("pointerdown", pointAt);
      svg.addEventListener("pointerleave", () => { if (document.activeElement !== svg) show(null); });
      svg.addEventListener("blur", () => show(null));
      svg.addEventListener("keydown", (event) => {
        const here = cursor === null ? steps.length : cursor, page = Math.max(1, Math.round(steps.length / 10));
        const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, PageDown: here - page, PageUp: here + page, Home: 0, End: steps.length - 1 };
        if (!(event.key in moves) || !steps.length) return;
        event.preventDefault();
        spoken.textContent = show(Math.min(Math.max(moves[event.key], 0), steps.length - 1));
      });
      cursor = null;
      if (hadFocus) svg.focus({ preventScroll: true });
    };

    /* Read the values at a step, or the last ones. */
    const show = (index) => {
      cursor = index;
      const { X, Y, hair, dots, steps, width } = scene;
      const step = index === null ? null : steps[index];
      hair.setAttribute("visibility", index === null ? "hidden" : "visible");
      at.textContent = index === null ? "" : `step ${step.toLocaleString("en-US")}`;
      if (index !== null) for (const end of ["x1", "x2"]) hair.setAttribute(end, X(step));
      const said = [];
      chart.lines.forEach((line, i) => {
        dots[i].setAttribute("visibility", "hidden");
        if (index === null) { values[i].textContent = resting[i]; return; }
        const k = nearest(line.x, step);
        if (!shown[i] || Math.abs(X(line.x[k]) - X(step)) > Math.max(2, width / 200)) { values[i].textContent = "–"; return; }
        const bad = line.bad.find((mark) => mark[0] === line.x[k]);
        let text = line.y[k] === null ? "" : exact(line.y[k]);
        if (line.y[k] !== null && line.low && line.low[k] !== line.high[k]) text += ` (${exact(line.low[k])} to ${exact(line.high[k])})`;
        if (bad) text = `${text} ${bad[1]}`.trim();
        values[i].textContent = text;
        said.push(`${line.name} ${text}`);
        if (line.y[k] !== null) {
          dots[i].setAttribute("cx", X(line.x[k]));
          dots[i].setAttribute("cy", Y(line.y[k]));
          dots[i].setAttribute("visibility", "visible");
        }
      });
      return index === null ? "" : `${at.textContent}: ${said.join(", ")}`;
    };

    figure.querySelectorAll(".legend button").forEach((button) =>
      button.addEventListener("click", () => {
        const i = Number(button.dataset.line);
        shown[i] = !shown[i];
        button.setAttribute("aria-pressed", String(shown[i]));
        draw();
      }));
    new ResizeObserver(draw).observe(plot);
  };

  const drawLine = (frame, line, i, X, Y, range, base) => {
    // Far outside of the frame numbers lose their use, and then their meaning.
    const at = (value) => Math.min(Math.max(Y(value), -1e4), 1e4).toFixed(1);
    const runs = []; // of neighbours that have a value
    line.y.forEach((y, k) => {
      if (y === null) { runs.push([]); return; }
      if (!runs.length) runs.push([]);
      runs[runs.length - 1].push(k);
    });
    const x = line.x.map((step) => X(step).toFixed(1));
    for (const run of runs.filter((run) => run.length)) {
      if (line.low && run.length > 1)
        make("path", { class: `band f${i}`, d: `M${run.map((k) => `${x[k]},${at(line.high[k])}`).join("L")}L${run.slice().reverse().map((k) => `${x[k]},${at(line.low[k])}`).join("L")}Z` }, frame);
      if (run.length > 1) make("path", { class: `line c${i}`, d: `M${run.map((k) => `${x[k]},${at(line.y[k])}`).join("L")}` }, frame);
      if (line.x.length <= 40 || run.length === 1) for (const k of run) make("circle", { class: `dot f${i}`, cx: x[k], cy: at(line.y[k]), r: 2.5 }, frame);
    }
    // Values that are not finite: a cross at the foot, for positive infinity at the head of the chart.
    for (const [step, kinds] of line.bad) {
      const y = kinds === "∞" ? MARGIN.top + 4 : base - 5, c = X(step);
      const mark = make("path", { class: `wrong c${i}`, d: `M${c - 4},${y - 4}l8,8m0,-8l-8,8` }, frame);
      make("title", {}, mark, `${line.name}: ${kinds} at step ${step.toLocaleString("en-US")}`);
    }
  };
  document.querySelectorAll(".chart").forEach(setUp);

  // ---- grids over time -----------------------------------------------------------------------------------------------
  const slider = document.getElementById("grid-slider");
  if (slider) {
    const grids = [...document.querySelectorAll("#grids img")], step = document.getElementById("grid-step");
    const choose = () => {
      grids.forEach((grid, i) => { grid.hidden = i !== Number(slider.value); });
      const text = `step ${Number(grids[slider.value].dataset.step).toLocaleString("en-US")}`;
      step.textContent = text;
      slider.setAttribute("aria-valuetext", text);
    };
    slider.addEventListener("input", choose);
    choose(); // a browser may have kept the slider where it was
  }
})();
