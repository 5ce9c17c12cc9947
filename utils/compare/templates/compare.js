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

  // The names that find room beside their mark, earlier ones first; walls: boxes where none may be.
  // utils/compare/pictures.py has the same rule.
  const label = (spots, marks, walls, width, bottom) => {
    const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    const taken = [...walls], found = [];
    const beside = [[true, -7], [false, -7], [true, 16], [false, 16]];
    spots.forEach(({ x, y, name }, place) => {
      const others = marks.flatMap((boxes, other) => (other === place ? [] : boxes));
      for (const [most, right, down] of [26, 13].flatMap((most) => beside.map((side) => [most, ...side]))) {
        const text = name.length > most ? `${name.slice(0, most - 1)}…` : name, length = 7 * text.length;
        const start = right ? x + 9 : x - 9 - length;
        const box = [start, y + down - 10, start + length, y + down + 3];
        const inside = box[0] >= 0 && box[2] <= width && box[1] >= 18 && box[3] <= bottom;
        if (inside && ![...others, ...taken].some((each) => meet(box, each))) {
          taken.push(box);
          found.push({ x: right ? x + 9 : x - 9, y: y + down, anchor: right ? "start" : "end", text });
          return;
        }
      }
    });
    return found;
  };
  // Small boxes along a line through places.
  const along = (places) => places.slice(1).flatMap(([x, y], before) => {
    const [fromX, fromY] = places[before], steps = Math.ceil(Math.hypot(x - fromX, y - fromY) / 6);
    return [...Array(steps + 1).keys()].map((step) => {
      const [atX, atY] = [fromX + ((x - fromX) * step) / (steps || 1), fromY + ((y - fromY) * step) / (steps || 1)];
      return [atX - 2, atY - 2, atX + 2, atY + 2];
    });
  });

  // A picture of points, and of lines that join some of them. points: {x, y, error, name, kept, first}.
  const draw = (place, points, { xName, yName, log, lines, leftOut }) => {
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
      const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= 0.999 * rough);
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
    for (const point of points) {
      const kind = point.kept ? "restored" : "lost";
      if (point.error) {
        add("line", { class: kind, x1: x(point.x), x2: x(point.x), y1: y(point.y - point.error), y2: y(point.y + point.error) });
      }
      const mark = add("circle", { class: kind, cx: x(point.x), cy: y(point.y), r: 5 });
      mark.dataset.tip = `${point.name}: ${short(point.y)}${point.error ? ` ± ${short(point.error)}` : ""} at ${short(point.x)}`;
    }
    const order = [...points].sort((a, b) => Boolean(b.first) - Boolean(a.first));
    const marks = order.map((point) => {
      const [at, high, low] = [x(point.x), y(point.y + (point.error || 0)), y(point.y - (point.error || 0))];
      return [[at - 6, y(point.y) - 6, at + 6, y(point.y) + 6], [at - 1, high, at + 1, low]];
    });
    const spots = order.map((point) => ({ x: x(point.x), y: y(point.y), name: point.name }));
    const walls = lines.flatMap((line) => along(line.points.map((point) => [x(point.x), y(point.y)])));
    for (const each of label(spots, marks, walls, width, bottom)) {
      add("text", { class: "key halo", x: each.x, y: each.y, "text-anchor": each.anchor }, each.text);
    }
    place.append(svg);
    if (leftOut.length) {
      const more = leftOut.length > 4 ? ` and ${leftOut.length - 4} more` : "";
      const text = `Not drawn, since a number is missing or 0: ${leftOut.slice(0, 4).join(", ")}${more}`;
      place.append(Object.assign(document.createElement("p"), { className: "note", textContent: text }));
    }
  };

  const columns = Object.fromEntries(data.columns.map((column) => [column.name, column]));
  const names = data.columns.map((column) => [column.name, column.heading]);
  const keepDrawn = (picture, ...choices) => {
    for (const id of choices) byId(id).addEventListener("change", picture);
    addEventListener("resize", picture);
    picture();
  };
  // Lines with runs as points, and the names of those that have no place. values: a number a line, or null.
  const placed = (values, up, log) => {
    const points = [], leftOut = [];
    data.lines.forEach((line, place) => {
      const [x, cell] = [values[place], line.cells[up]];
      if (cell && cell.value !== null && x !== null && (x > 0 || !log)) {
        points.push({ x, y: cell.value, error: cell.error, name: line.label, kept: line.kept, place });
      } else if (line.n) leftOut.push(line.label);
    });
    return { points, leftOut };
  };
  // The files beside the page are of what it shows at first.
  const link = (id, file) => {
    const links = byId(id);
    links.hidden = file === null;
    if (file !== null) [".svg", ".csv"].forEach((end, place) => { links.querySelectorAll("a")[place].href = encodeURIComponent(file + end); });
  };

  if (byId("across")) {
    const pareto = () => {
      const [across, up] = [columns[byId("across").value], columns[byId("up").value]];
      const values = data.lines.map((line) => (line.cells[across.name] ? line.cells[across.name].value : null));
      const { points, leftOut } = placed(values, up.name, across.log);
      // No other is at least as good in both and better in one; none without a better end.
      const known = across.lower !== null && up.lower !== null;
      const cost = (point) => [across.lower ? point.x : -point.x, up.lower ? point.y : -point.y];
      const beats = ([a, b], [c, d]) => a <= c && b <= d && (a < c || b < d);
      for (const point of points) point.first = known && !points.some((other) => beats(cost(other), cost(point)));
      const front = points.filter((point) => point.first).sort((a, b) => a.x - b.x);
      const lines = front.length > 1 ? [{ kind: "front", points: front }] : [];
      draw(byId("pareto"), points, { xName: across.heading, yName: up.heading, log: across.log, lines, leftOut });
      const first = data.across !== data.up && across.name === data.across && up.name === data.up;
      link("paretoFiles", first && points.length ? `${data.stem}-pareto` : null);
    };
    options(byId("across"), names, data.across);
    options(byId("up"), names, data.up);
    keepDrawn(pareto, "across", "up");
  }

  if (byId("flag")) {
    const curve = () => {
      const [flag, up] = [byId("flag").value, byId("of").value];
      const { values, groups } = data.curves[flag];
      const { points, leftOut } = placed(values, up, false);
      const across = points.map((point) => point.x);
      const mean = (numbers) => numbers.reduce((sum, each) => sum + each, 0) / numbers.length;
      const lines = [...new Set(groups)].map((group) => {
        const mine = points.filter((point) => groups[point.place] === group);
        const places = [...new Set(mine.map((point) => point.x))].sort((a, b) => a - b);
        return { kind: "curve", points: places.map((x) => ({ x, y: mean(mine.filter((point) => point.x === x).map((point) => point.y)) })) };
      }).filter((line) => line.points.length > 1);
      const log = Math.min(...across) > 0 && Math.max(...across) > 10 * Math.min(...across);
      draw(byId("curve"), points, { xName: `-${flag}`, yName: columns[up].heading, log, lines, leftOut });
      link("curveFiles", up === data.up && new Set(across).size > 1 ? `${data.stem}-${flag}` : null);
    };
    options(byId("flag"), Object.keys(data.curves).map((name) => [name, `-${name}`]), data.flag);
    options(byId("of"), names, data.up);
    keepDrawn(curve, "flag", "of");
  }

  if (byId("one")) {
    const used = new Set(data.pairs.flatMap((pair) => [pair.one, pair.other]));
    const all = data.lines.flatMap((line, place) => (used.has(place) ? [[String(place), line.label]] : []));
    options(byId("one"), all, String(data.pairs[0].other));
    options(byId("other"), all, String(data.pairs[0].one));
    // As many decimals as show two digits of the error.
    const digits = (value, error) => {
      const scale = error || Math.abs(value) / 100 || 1;
      return Math.abs(value).toFixed(Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(scale)))));
    };
    const show = () => {
      const [one, other] = [Number(byId("one").value), Number(byId("other").value)];
      const pair = data.pairs.find((each) => (each.one === one && each.other === other) || (each.one === other && each.other === one));
      const body = byId("differences");
      body.replaceChildren();
      for (const [measure, found, error, seeds, n] of pair ? pair.found : []) {
        const { what, lower } = data.measures[measure];
        const row = body.insertRow();
        const add = (text, kind = "") => Object.assign(row.insertCell(), { textContent: text, className: kind });
        add(what);
        if (found === null) {
          add("–", "num"); add(n, "num"); add("");
          continue;
        }
        const difference = pair.one === one ? found : -found;
        const sign = difference > 0 ? "+" : difference < 0 ? "−" : "";
        const cell = add(`${sign}${digits(difference, error)}`, "num");
        for (const each of [error, seeds].filter((each) => each !== null)) {
          cell.append(Object.assign(document.createElement("small"), { textContent: ` ± ${digits(each, error || each)}` }));
        }
        add(n.toLocaleString("en-US"), "num");
        const better = lower === null ? "differs" : (difference < 0) === lower ? "better" : "worse";
        const verdict = difference === 0 ? "equal" : error === null ? "no stderr" : Math.abs(difference) > 2 * Math.hypot(error, seeds ?? 0) ? better : "within noise";
        add(verdict, verdict === "better" || verdict === "worse" ? verdict : "");
      }
      if (!body.rows.length) body.insertRow().insertCell().textContent = one === other ? "The same." : "Not scored on the same rows.";
    };
    byId("one").addEventListener("change", show);
    byId("other").addEventListener("change", show);
    show();
  }
})();
