"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const space = "http://www.w3.org/2000/svg";
  const short = (value) => {
    if (value !== 0 && (Math.abs(value) >= 1e7 || Math.abs(value) < 1e-4)) {
      const [mantissa, power] = value.toExponential(2).split("e");
      return `${Number(mantissa)}e${Number(power)}`;
    }
    return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 12 });
  };
  const options = (select, names, chosen) => {
    names.forEach(([value, text]) => select.append(new Option(text, value, false, value === chosen)));
  };

  byId("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of byId("lines").tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  });

  // A picture of points, and of lines that join some of them. points: {x, y, error, name, filled, group}.
  const draw = (place, points, { xName, yName, log, lines, smaller }) => {
    place.replaceChildren();
    if (!points.length) {
      place.append(Object.assign(document.createElement("p"), { className: "note", textContent: "Nothing has both." }));
      return;
    }
    const width = Math.max(300, Math.min(800, place.clientWidth)), height = width < 600 ? 290 : 380;
    const svg = document.createElementNS(space, "svg");
    const add = (name, attributes, text) => {
      const node = svg.appendChild(document.createElementNS(space, name));
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      if (text !== undefined) node.textContent = text;
      return node;
    };
    svg.setAttribute("class", "chart");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${yName} against ${xName}`);
    const [left, right, top, bottom] = [54, width - 20, 30, height - 44];
    const of = (value) => (log ? Math.log10(value) : value);
    const range = (values) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const margin = 0.08 * (high - low) || Math.abs(low) * 0.1 || 1;
      return [low - margin, high + margin];
    };
    const [lowX, highX] = range(points.map((point) => of(point.x)));
    const [lowY, highY] = range(points.flatMap((point) => [point.y - (point.error || 0), point.y + (point.error || 0)]));
    const x = (value) => left + ((of(value) - lowX) / (highX - lowX)) * (right - left);
    const y = (value) => bottom - ((value - lowY) / (highY - lowY)) * (bottom - top);
    const ticks = (low, high, count) => {
      const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
      const found = [];
      for (let place = Math.ceil(low / step); place * step <= high; place += 1) found.push(Number((place * step).toPrecision(12)));
      return found;
    };
    let acrossTicks = ticks(lowX, highX, width < 600 ? 4 : 7);
    if (log) {
      acrossTicks = [];
      for (let power = Math.floor(lowX); power <= highX; power += 1) {
        for (const factor of highX - lowX > 2 ? [1] : [1, 2, 5]) {
          const value = factor * 10 ** power;
          if (of(value) >= lowX && of(value) <= highX) acrossTicks.push(value);
        }
      }
    }
    for (const value of ticks(lowY, highY, 5)) {
      add("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) });
      add("text", { class: "tick", x: left - 7, y: y(value) + 4, "text-anchor": "end" }, short(value));
    }
    for (const value of acrossTicks) {
      add("text", { class: "tick", x: x(value), y: bottom + 17, "text-anchor": "middle" }, short(value));
    }
    add("text", { class: "axis", x: 0, y: 14 }, yName);
    add("text", { class: "axis", x: right, y: height - 6, "text-anchor": "end" }, xName);
    for (const line of lines) {
      add("path", { class: line.kind, d: `M${line.points.map((point) => `${x(point.x)},${y(point.y)}`).join("L")}` });
    }
    const taken = [];
    for (const point of points) {
      if (point.error) {
        add("line", { class: "restored", x1: x(point.x), x2: x(point.x), y1: y(point.y - point.error), y2: y(point.y + point.error) });
      }
      const mark = add("circle", { class: point.filled ? "restored" : "lost", cx: x(point.x), cy: y(point.y), r: 5 });
      mark.dataset.tip = `${point.name}: ${short(point.y)}${point.error ? ` ± ${short(point.error)}` : ""} at ${short(point.x)}`;
      const name = point.name.length > 26 ? `${point.name.slice(0, 25)}…` : point.name;
      const room = { x: x(point.x), y: y(point.y), w: 7 * name.length + 20 };
      if (taken.some((other) => Math.abs(other.y - room.y) < 13 && Math.abs(other.x - room.x) < Math.max(other.w, room.w))) continue;
      taken.push(room);
      const atEnd = room.x + room.w > right;
      add("text", { class: "key halo", x: room.x + (atEnd ? -9 : 9), y: room.y - 7, "text-anchor": atEnd ? "end" : "start" }, name);
    }
    place.append(svg);
  };

  const heading = Object.fromEntries(data.columns.map((column) => [column.name, column.heading]));
  const lower = (name) => heading[name].includes("↓") || ["trained_parameters", "minutes"].includes(name);
  const names = data.columns.map((column) => [column.name, column.heading]);
  const has = (name) => name in heading;
  const value = (line, name) => (line.cells[name] ? line.cells[name].value : null);
  const kept = (line) => !line.cells.zeros_kept || line.cells.zeros_kept.value >= 100;
  const label = (line) => (new Set(data.lines.filter((each) => each.n).map((each) => each.pruning)).size > 1 ? `${line.name}, ${line.pruning}` : line.name);

  const keepDrawn = (picture, ...choices) => {
    for (const id of choices) byId(id).addEventListener("change", picture);
    addEventListener("resize", picture);
    picture();
  };
  const pareto = () => {
    const [across, up] = [byId("across").value, byId("up").value];
    if (!across || !up) return;
    const points = data.lines.flatMap((line) => {
      const [x, y] = [value(line, across), value(line, up)];
      return x === null || y === null ? [] : [{ x, y, error: line.cells[up].error, name: label(line), filled: kept(line) }];
    });
    const log = across === "trained_parameters" || across === "rate";
    const positive = log ? points.filter((point) => point.x > 0) : points;
    // Nothing else is at least as good in both and better in one.
    const better = (a, b, name, key) => (lower(name) ? a[key] < b[key] : a[key] > b[key]);
    const front = positive
      .filter((point) => !positive.some((other) => other !== point
        && !better(point, other, across, "x") && !better(point, other, up, "y")
        && (better(other, point, across, "x") || better(other, point, up, "y"))))
      .sort((a, b) => a.x - b.x);
    draw(byId("pareto"), positive, {
      xName: heading[across], yName: heading[up], log, lines: front.length > 1 ? [{ kind: "front", points: front }] : [],
    });
  };
  options(byId("across"), names, has("trained_parameters") ? "trained_parameters" : names[0] && names[0][0]);
  const best = ["recovered", "recovered_perplexity", "task_mean", "perplexity", "valid_loss"].find(has);
  options(byId("up"), names, best);
  keepDrawn(pareto, "across", "up");

  if (byId("flag")) {
    const flags = Object.keys(data.flags).filter((name) => new Set(data.flags[name].filter((each) => typeof each === "number")).size > 1);
    const curve = () => {
      const [flag, up] = [byId("flag").value, byId("of").value];
      const points = data.lines.flatMap((line, place) => {
        const [x, y] = [flag ? data.flags[flag][place] : null, value(line, up)];
        if (typeof x !== "number" || y === null) return [];
        return [{ x, y, error: line.cells[up].error, name: label(line), filled: kept(line), group: `${line.pruning} ${line.method}` }];
      });
      const groups = Map.groupBy ? Map.groupBy(points, (point) => point.group) : new Map([["", points]]);
      const lines = [...groups.values()].map((each) => ({ kind: "curve", points: each.sort((a, b) => a.x - b.x) }));
      const log = points.length > 1 && points.every((point) => point.x > 0)
        && Math.max(...points.map((point) => point.x)) > 10 * Math.min(...points.map((point) => point.x));
      draw(byId("curve"), points, { xName: `-${flag}`, yName: heading[up], log, lines });
    };
    options(byId("flag"), flags.map((name) => [name, `-${name}`]), flags.includes("lr") ? "lr" : flags[0]);
    options(byId("of"), names, best);
    keepDrawn(curve, "flag", "of");
  }

  if (byId("one")) {
    const used = new Set(data.pairs.flatMap((pair) => [pair.one, pair.other]));
    const all = data.lines.flatMap((line, place) => (used.has(place) ? [[String(place), label(line)]] : []));
    options(byId("one"), all, String(data.pairs[0].other));
    options(byId("other"), all, String(data.pairs[0].one));
    const show = () => {
      const [one, other] = [Number(byId("one").value), Number(byId("other").value)];
      const pair = data.pairs.find((each) => (each.one === one && each.other === other) || (each.one === other && each.other === one));
      const body = byId("differences");
      body.replaceChildren();
      for (const found of pair ? pair.differences : []) {
        const difference = (pair.one === one ? 1 : -1) * found.difference;
        const row = body.insertRow();
        const clear = found.stderr !== null && Math.abs(difference) > 2 * found.stderr;
        const texts = [found.what, `${difference > 0 ? "+" : difference < 0 ? "−" : ""}${short(Math.abs(difference))}`,
          found.stderr === null ? "–" : short(found.stderr), difference === 0 ? "equal" : clear ? "beyond noise" : "within noise"];
        texts.forEach((text, place) => {
          const cell = row.insertCell();
          cell.textContent = text;
          if (place === 1 || place === 2) cell.className = "num";
          if (place === 3 && clear) cell.className = "better";
        });
      }
      if (!body.rows.length) body.insertRow().insertCell().textContent = one === other ? "The same." : "Not scored on the same rows.";
    };
    byId("one").addEventListener("change", show);
    byId("other").addEventListener("change", show);
    show();
  }
})();
