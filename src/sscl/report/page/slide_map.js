// The map: the mean of the tiles over each cell, its colours, and what is above the threshold.

const [columns, rowsOfCells] = content.grid.cells;
const [cellWidth, cellHeight] = content.grid.side;
const cells = columns * rowsOfCells;
const over = new Uint16Array(cells); // tiles over each cell
const means = classes.map(() => new Float32Array(cells)); // of each class
const undecidedOver = new Uint16Array(cells);
const ramp = bytesOf(content.ramp);
const LAYER_PREDICTION = "prediction";
const layer = { show: LAYER_PREDICTION, opacity: 0.55, threshold: 0, smooth: false, undecided: true, on: true };
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

// More than half of the tiles over it have no answer.
const isUndecided = (cell) => 2 * undecidedOver[cell] > over[cell];

/** Colour the cells, once after each change; moving and zooming only draw the result. */
function paint() {
  const colours = new ImageData(picture.width, picture.height);
  const lines = new ImageData(hatch.width, hatch.height);
  const found = { cells: 0, above: 0, undecided: 0, classes: classes.map(() => 0), regions: 0 };
  const label = layer.show === LAYER_PREDICTION ? -1 : Number(layer.show);
  for (let cell = 0; cell < cells; cell++) {
    if (!over[cell]) continue;
    found.cells++;
    const best = bestOf(cell);
    const value = means[label < 0 ? best : label][cell];
    if (isUndecided(cell)) {
      found.undecided++;
      if (layer.undecided) lines.data[4 * cell + 3] = 255;
      if (label < 0) continue; // no class is claimed
    }
    if (value >= content.threshold - 1e-6) found.regions++;
    if (value < layer.threshold - 1e-6) continue;
    found.above++;
    found.classes[best]++;
    const level = 3 * Math.round(255 * value);
    const colour = label < 0 ? content.colours[best] : ramp.subarray(level, level + 3);
    colours.data.set([colour[0], colour[1], colour[2], 255], 4 * cell);
  }
  picture.getContext("2d").putImageData(colours, 0, 0);
  hatch.getContext("2d").putImageData(lines, 0, 0);
  showSum(found, label);
  drawOver();
}

function showSum(found, label) {
  const area = (number) => areaText((number * cellWidth * cellHeight * mpp * mpp) / 1e6);
  const share = (number) => percent(found.cells ? number / found.cells : 0);
  // Without a threshold, what is above that of the regions: all would say nothing.
  const [above, from] = layer.threshold > 0 ? [found.above, layer.threshold] : [found.regions, content.threshold];
  const parts =
    label < 0
      ? classes.map((name, at) => [found.classes[at], name]).filter(([number]) => number)
      : [[above, `${className(label)} ≥ ${from.toFixed(2)}`]];
  const lines = parts.map(([number, name]) => `${name}: ${area(number)} (${share(number)})`);
  if (found.undecided) lines.push(`undecided: ${area(found.undecided)} (${share(found.undecided)})`);
  const title = label < 0 && layer.threshold > 0 ? `, from a confidence of ${layer.threshold.toFixed(2)}` : "";
  byId("sum").replaceChildren(
    ...[`Of ${area(found.cells)} in tiles${title}:`, ...lines].map((text) => element("span", {}, element("bdi", { textContent: text }))),
  );
}

function showLegend() {
  const rows = [];
  const label = layer.show === LAYER_PREDICTION ? -1 : Number(layer.show);
  if (label < 0) {
    for (const [at, name] of classes.entries()) {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = `rgb(${content.colours[at].join(" ")})`;
      rows.push(element("li", {}, swatch, element("bdi", { textContent: name })));
    }
  } else {
    const strip = element("canvas", { width: 256, height: 1, className: "ramp", "aria-hidden": "true" });
    const data = new ImageData(256, 1);
    for (let level = 0; level < 256; level++) data.data.set([...ramp.subarray(3 * level, 3 * level + 3), 255], 4 * level);
    strip.getContext("2d").putImageData(data, 0, 0);
    rows.push(element("li", { className: "whole" }, "0", strip, "1"));
  }
  if (decided.includes(0)) {
    rows.push(element("li", {}, element("span", { className: "swatch hatched" }), "undecided"));
  }
  if (content.damaged.length) rows.push(element("li", {}, element("span", { className: "swatch crossed", textContent: "✕" }), "could not be read"));
  byId("legend").replaceChildren(...rows);
}
