"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const hidden = new Set();
  const chosen = {};
  const drawn = new Set();
  const coarse = matchMedia("(pointer: coarse)").matches;
  const all = (selector, from) => Array.from((from || document).querySelectorAll(selector));

  // Figures name colours as @name; the theme in force gives their values.
  function coloured(value, key) {
    if (Array.isArray(value)) return value.map((item) => coloured(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, k)]));
    }
    if (typeof value === "string" && value[0] === "@" && /color(scale)?$/.test(key || "")) {
      return getComputedStyle(root).getPropertyValue("--" + value.slice(1)).trim();
    }
    return value;
  }

  function merged(base, over) {
    const result = { ...base };
    for (const [key, value] of Object.entries(over)) {
      const nested = value && typeof value === "object" && !Array.isArray(value);
      result[key] = nested ? merged(result[key] || {}, value) : value;
    }
    return result;
  }

  // Few ticks on logarithmic axes: the library would label every digit of every decade.
  function axis(own, pixels) {
    return merged({
      gridcolor: "@grid", linecolor: "@rule", tickcolor: "@rule", zeroline: false,
      exponentformat: "none", separatethousands: true,
      automargin: true, title: { standoff: 8, font: { size: 12, color: "@muted" } },
      ...(own.type === "log" ? { tickformat: ",~g", nticks: pixels < 420 ? 3 : 5 } : {}),
    }, own);
  }

  function layoutOf(figure, picks, chart) {
    let layout = figure.layout;
    for (const [group, options] of Object.entries(figure.toggles)) {
      layout = merged(layout, options.find((option) => option.key === picks[group]).layout);
    }
    return coloured(merged({
      autosize: true, height: figure.height, showlegend: false, dragmode: coarse ? false : "zoom",
      margin: { l: 52, r: 10, t: 8, b: 42 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "@text" },
      hoverlabel: { bgcolor: "@surface", bordercolor: "@rule", font: { color: "@ink" } },
    }, {
      ...layout, xaxis: axis(layout.xaxis, chart.clientWidth), yaxis: axis(layout.yaxis, 400),
    }));
  }

  function tracesOf(figure, picks) {
    return figure.data.map((trace) => {
      const view = !trace.meta.view || trace.meta.view === picks.view;
      return coloured({ ...trace, visible: view && !hidden.has(trace.meta.tone) });
    });
  }

  function draw(chart) {
    const name = chart.dataset.figure;
    const figure = figures[name];
    const picks = (chosen[name] ||= Object.fromEntries(
      Object.entries(figure.toggles).map(([group, options]) => [group, options[0].key])));
    drawn.add(chart);
    return Plotly.react(
      chart, tracesOf(figure, picks), layoutOf(figure, picks, chart),
      { displayModeBar: false, responsive: true, doubleClick: "reset" });
  }

  function redraw() {
    for (const chart of drawn) draw(chart);
  }

  // Charts are drawn when they come near, so that a page of many opens at once.
  const nearby = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        nearby.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "300px" });
  all(".chart").forEach((chart) => nearby.observe(chart));
  addEventListener("beforeprint", () => all(".chart").forEach((chart) => {
    if (!drawn.has(chart) && chart.offsetParent) draw(chart);
  }));

  function press(button, on) {
    button.setAttribute("aria-pressed", String(on));
  }

  all(".legend button").forEach((button) => button.addEventListener("click", () => {
    const tone = Number(button.dataset.tone);
    const on = hidden.delete(tone);
    if (!on) hidden.add(tone);
    press(button, on);
    all(`.chart-figure[data-tone="${tone}"]`).forEach((figure) => { figure.hidden = !on; });
    redraw();
  }));

  all(".segments").forEach((group) => group.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    all("button", group).forEach((other) => press(other, other === button));
    const chart = document.getElementById("c-" + group.dataset.chart);
    const before = chosen[group.dataset.chart];
    if (!before) return;
    before[group.dataset.group] = button.dataset.key;
    draw(chart).then(() => reset(chart));
  }));

  const select = document.getElementById("setting");
  if (select) {
    select.addEventListener("change", () => all(".setting").forEach((setting) => {
      setting.hidden = setting.dataset.setting !== select.value;
    }));
  }

  // Theme: as the system has it, or as chosen; remembered where the browser allows it.
  const themes = ["auto", "light", "dark"];
  const themeButton = document.getElementById("theme");
  function setTheme(name) {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    themeButton.textContent = "Theme: " + name;
    redraw();
  }
  let theme = "auto";
  try { theme = localStorage.getItem("nexusbench-theme") || "auto"; } catch { /* not allowed */ }
  setTheme(themes.includes(theme) ? theme : "auto");
  themeButton.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem("nexusbench-theme", theme); } catch { /* not allowed */ }
    setTheme(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Zoom and move with the keyboard, along the horizontal axis.
  function reset(chart) {
    return Plotly.relayout(chart, initialRanges(chart));
  }
  function initialRanges(chart) {
    const name = chart.dataset.figure;
    const layout = layoutOf(figures[name], chosen[name], chart);
    const changes = {};
    for (const side of ["xaxis", "yaxis"]) {
      if (layout[side].range) changes[side + ".range"] = layout[side].range;
      else changes[side + ".autorange"] = true;
    }
    return changes;
  }
  const moves = {
    "+": [0.2, -0.2], "=": [0.2, -0.2], "-": [-0.25, 0.25],
    ArrowLeft: [-0.2, -0.2], ArrowRight: [0.2, 0.2],
  };
  all(".chart").forEach((chart) => chart.addEventListener("keydown", (event) => {
    if (!drawn.has(chart) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "0" || event.key === "Escape") {
      reset(chart);
    } else if (event.key in moves) {
      const [low, high] = chart._fullLayout.xaxis.range.map(Number);
      const [left, right] = moves[event.key];
      Plotly.relayout(chart, {
        "xaxis.range": [low + left * (high - low), high + right * (high - low)],
      });
    } else {
      return;
    }
    event.preventDefault();
  }));
})();
