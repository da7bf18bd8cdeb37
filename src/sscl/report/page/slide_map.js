// The map: the mean of the tiles over each cell, its colours, and what is above the threshold.

const [columns, rowsOfCells] = content.grid.cells;
const [cellWidth, cellHeight] = content.grid.side;
const cells = columns * rowsOfCells;
const over = new Uint16Array(cells); // tiles over each cell
const means = classes.map(() => new Float32Array(cells)); // of each class
const undecidedOver = new Uint16Array(cells);
let anyUndecided = false;
const ramp = bytesOf(content.ramp);
const LAYER_PREDICTION = "prediction";
// only: the one class of LAYER_PREDICTION that is shown, -1: all.
const layer = { show: LAYER_PREDICTION, only: -1, opacity: 0.55, threshold: 0, smooth: false, undecided: true, on: true };
const picture = element("canvas", { width: Math.max(1, columns), height: Math.max(1, rowsOfCells) });
const hatch = element("canvas", { width: Math.max(1, columns), height: Math.max(1, rowsOfCells) });

function fillCells() {
  const [left, top] = content.grid.start;
  const [wide, high] = content.grid.span;
  for (let index = 0; index < total; index++) {
    const column = Math.round((xOf(index) - left) / cellWidth);
    const row = Math.round((yOf(index) - top) / cellHeight);
    for (let y = row; y < Math.min(rowsOfCells, row + high); y++) {
      for (let x = column; x < Math.min(columns, column + wide); x++) {
        const cell = y * columns + x;
        over[cell]++;
        if (!decided[index]) undecidedOver[cell]++;
        for (let label = 0; label < classes.length; label++) means[label][cell] += probability(index, label);
      }
    }
  }
  for (const mean of means) for (let cell = 0; cell < cells; cell++) if (over[cell] > 1) mean[cell] /= over[cell];
  for (let cell = 0; cell < cells && !anyUndecided; cell++) anyUndecided = isUndecided(cell);
}

/** The cell over a place, -1 without one. */
function cellAt(x, y) {
  const column = Math.floor((x - content.grid.start[0]) / cellWidth);
  const row = Math.floor((y - content.grid.start[1]) / cellHeight);
  if (column < 0 || row < 0 || column >= columns || row >= rowsOfCells) return -1;
  const cell = row * columns + column;
  return over[cell] ? cell : -1;
}

function bestOf(cell) {
  let best = 0;
  for (let label = 1; label < classes.length; label++) if (means[label][cell] > means[best][cell]) best = label;
  return best;
}

// Of one tile as it was answered; of several their mean says, as in heatmap.png.
const isUndecided = (cell) =>
  over[cell] > 1 ? means[bestOf(cell)][cell] < (content.decideFrom ?? 0) : undecidedOver[cell] > 0;

/** The class whose probability is shown, -1: the predicted classes. */
const shownLabel = () => (layer.show === LAYER_PREDICTION || camShown() ? -1 : Number(layer.show));
const atLeast = (value, threshold) => value >= threshold - 1e-6;

/** Colour the cells, once after each change; moving and zooming only draw the result. */
function paint() {
  const colours = new ImageData(picture.width, picture.height);
  const lines = new ImageData(hatch.width, hatch.height);
  const found = { cells: 0, above: 0, undecided: 0, undecidedAbove: 0, classes: classes.map(() => 0) };
  const label = shownLabel();
  const from = countedFrom();
  for (let cell = 0; cell < cells; cell++) {
    if (!over[cell]) continue;
    found.cells++;
    const best = bestOf(cell);
    const value = means[label < 0 ? best : label][cell];
    const unsure = isUndecided(cell);
    if (unsure) {
      found.undecided++;
      if (layer.undecided) lines.data[4 * cell + 3] = 255;
      if (label < 0) continue; // no class is claimed
    }
    if (atLeast(value, from)) {
      found.above++;
      if (unsure) found.undecidedAbove++;
    }
    if (!atLeast(value, layer.threshold)) continue;
    found.classes[best]++;
    if (label < 0 && layer.only >= 0 && best !== layer.only) continue;
    const level = 3 * Math.round(255 * value);
    const colour = label < 0 ? content.colours[best] : ramp.subarray(level, level + 3);
    colours.data.set([colour[0], colour[1], colour[2], 255], 4 * cell);
  }
  picture.getContext("2d").putImageData(colours, 0, 0);
  hatch.getContext("2d").putImageData(lines, 0, 0);
  showAreas(found);
  drawOver();
}

/** From which probability of a class its area counts. Without a threshold, that of the regions: all would say nothing. */
const countedFrom = () => (layer.threshold > 0 ? layer.threshold : content.threshold);

/** The colours of the map, each with its area; a click on a class shows it alone. */
function showAreas(found) {
  const label = shownLabel();
  const area = (number) => (number * cellWidth * cellHeight * mpp * mpp) / 1e6;
  const row = (name, number) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", { textContent: areaText(area(number)) }),
      element("td", { textContent: percent(found.cells ? number / found.cells : 0) }),
    );
  const plain = (swatch, text) => element("span", { className: "entry" }, swatch, element("bdi", { textContent: text }));
  const none = () => element("span", { className: "swatch none" });
  const rows =
    label < 0
      ? classes.map((_, at) => row(classEntry(at), found.classes[at]))
      : [row(plain(none(), `${className(label)} ≥ ${countedFrom().toFixed(2)}`), found.above)];
  if (anyUndecided) {
    if (label >= 0) rows.push(row(plain(none(), "undecided part of it"), found.undecidedAbove));
    rows.push(row(plain(element("span", { className: "swatch hatched" }), label < 0 ? "undecided" : "undecided in all"), found.undecided));
  }
  if (content.damaged.length) {
    const cross = plain(element("span", { className: "swatch crossed", textContent: "✕" }), "could not be read");
    const number = element("td", { colSpan: 2, textContent: count(content.damaged.length, "tile") });
    rows.push(element("tr", {}, element("th", { scope: "row" }, cross), number));
  }
  const focused = document.activeElement?.dataset?.only;
  byId("areas").replaceChildren(...rows);
  if (focused !== undefined) byId("areas").querySelector(`[data-only="${focused}"]`)?.focus();
  const confident = label < 0 && layer.threshold > 0 ? `, from a ${content.predicted ? "confidence" : "share"} of ${layer.threshold.toFixed(2)}` : "";
  byId("areas-title").textContent = `Of ${areaText(area(found.cells))} in tiles${confident}`;
}

function classEntry(label) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = `rgb(${content.colours[label].join(" ")})`;
  if (classes.length < 2) return element("span", { className: "entry" }, swatch, element("bdi", { textContent: className(label) }));
  const button = element("button", { type: "button", className: "entry", "aria-pressed": String(layer.only === label) }, swatch);
  button.append(element("bdi", { textContent: className(label) }));
  button.title = layer.only === label ? "show all classes" : "show this class alone";
  button.dataset.only = label;
  return button;
}

function showRamp() {
  byId("key").hidden = shownLabel() < 0;
  paintScale("ramp", (level) => [...ramp.subarray(3 * level, 3 * level + 3), 255]);
}
