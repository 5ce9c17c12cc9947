"use strict";
// Hovering: an SVG title is shown at once, and on a tap too, instead of after a second of waiting.
(() => {
  const tip = document.body.appendChild(document.createElement("div"));
  tip.id = "tip";
  for (const title of document.querySelectorAll("svg.chart title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  const show = (event) => {
    const text = event.target.dataset && event.target.dataset.tip;
    tip.classList.toggle("shown", Boolean(text));
    if (!text) return;
    tip.textContent = text;
    const { offsetWidth: width, offsetHeight: height } = tip;
    tip.style.left = `${Math.max(6, Math.min(event.clientX + 14, innerWidth - width - 6))}px`;
    tip.style.top = `${event.clientY - height - 12 > 0 ? event.clientY - height - 12 : event.clientY + 18}px`;
  };
  addEventListener("pointermove", show);
  addEventListener("pointerdown", show);
})();
// Sorting: by a cell's data-value where it has one, by its text otherwise; what is missing comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// What only a comparison of runs has.
(() => {
  const byId = (id) => document.getElementById(id);
  if (!byId("lines")) return;
  byId("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of byId("lines").tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  });
  const chosen = (draw, ...ids) => {
    for (const id of ids) byId(id).addEventListener("change", draw);
    draw();
  };
  if (byId("shown")) {
    chosen(() => [...byId("pictures").children].forEach((figure, place) => { figure.hidden = place !== byId("shown").selectedIndex; }), "shown");
  }
  const { names, pairs } = JSON.parse(byId("data").textContent);
  if (!pairs.length) return;
  const used = new Set(pairs.flatMap(([one, other]) => [one, other]));
  const options = (id, first) => names.forEach((name, place) => used.has(place) && byId(id).append(new Option(name, place, false, place === first)));
  options("one", pairs[0][1]);
  options("other", pairs[0][0]);
  chosen(() => {
    const [one, other] = ["one", "other"].map((id) => Number(byId(id).value));
    const pair = pairs.find(([a, b]) => (a === one && b === other) || (a === other && b === one));
    // The other way round, a difference has the other sign.
    const turned = { "+": "−", "−": "+", better: "worse", worse: "better" };
    const turn = (text) => (pair[0] === one ? text : turned[text] ?? text);
    const body = byId("differences");
    body.replaceChildren();
    for (const [what, difference, n, verdict] of pair ? pair[2] : []) {
      const row = body.insertRow(), [value, ...errors] = difference.split(" ± ");
      const add = (text, kind) => Object.assign(row.insertCell(), { textContent: text, className: kind });
      add(what, "");
      const cell = add(turn(value[0]) + value.slice(1), "num");
      for (const error of errors) cell.append(Object.assign(document.createElement("small"), { textContent: ` ± ${error}` }));
      add(n, "num");
      add(turn(verdict), ["better", "worse"].includes(verdict) ? turn(verdict) : "");
    }
    if (!body.rows.length) body.insertRow().insertCell().textContent = one === other ? "The same." : "Not scored on the same questions.";
  }, "one", "other");
})();
