// What is known of the slide and of each of its tiles.
//
// Coordinates are pixels of level 0, of the file's origin, as in tiles.csv; what a reader sees counts from the corner of
// the scanned area (`content.origin`), as QuPath does.

// OpenSeadragon empties its containers by `innerHTML = ""`: that alone may be set.
window.trustedTypes?.createPolicy("default", { createHTML: (text) => (text === "" ? "" : null) });

const packed = (Kind, base64) => new Kind(bytesOf(base64).buffer);
const corners = packed(Int32Array, content.xy); // x and y of each tile
const steps = packed(Uint16Array, content.probabilities); // of each tile and class, 65535 is 1
const coverage = packed(Uint8Array, content.coverage);
const decided = packed(Uint8Array, content.decided);
const { classes, footprint, mpp, base } = content;
const gallery = { classes, blind: content.blind }; // as worksheet.js and blind.js call it
const total = coverage.length;

const xOf = (index) => corners[2 * index];
const yOf = (index) => corners[2 * index + 1];
const probability = (index, label) => steps[index * classes.length + label] / 65535;

const tiles = Array.from({ length: total }, (_, index) => ({
  id: `${content.name}/${xOf(index)}_${yOf(index)}`,
  label: -1,
  prediction: predictionOf(index),
}));
const facts = tiles.map((tile, index) => ({ confidence: probability(index, tile.prediction), abstained: !decided[index] }));
const className = (label) => (label < 0 ? "unknown" : classes[label]);
const outcomeOf = (index) => (facts[index].abstained ? "undecided" : "decided");
const inStrip = new Set(content.groups.flatMap((group) => group.rows));
const inWorksheet = (index) => inStrip.has(index) || reviews.has(tiles[index].id);
const filter = { review: "", text: "" }; // of the gallery of a report; here all tiles are shown
let chosen = -1; // the tile that is shown beside the slide

function predictionOf(index) {
  const from = index * classes.length;
  let best = 0;
  for (let label = 1; label < classes.length; label++) if (steps[from + label] > steps[from + best]) best = label;
  return best;
}

/** The tile with the smallest distance, -1 where none has a finite one. */
function nearest(distanceOf) {
  let best = -1;
  let least = Infinity;
  for (let index = 0; index < total; index++) {
    const distance = distanceOf(index);
    if (distance < least) [best, least] = [index, distance];
  }
  return best;
}

/** The tile over a place whose middle is nearest, -1 without one. */
const tileAt = (x, y) =>
  nearest((index) => {
    const [dx, dy] = [x - xOf(index), y - yOf(index)];
    if (dx < 0 || dy < 0 || dx >= footprint || dy >= footprint) return Infinity;
    return Math.max(Math.abs(dx - footprint / 2), Math.abs(dy - footprint / 2));
  });

/** The next tile to one side of a tile, -1 without one. */
const tileBeside = (from, across, down) =>
  nearest((index) => {
    const [dx, dy] = [xOf(index) - xOf(from), yOf(index) - yOf(from)];
    const along = dx * across + dy * down;
    const aside = Math.abs(dx * down) + Math.abs(dy * across);
    return along <= 0 || aside > along ? Infinity : along + 2 * aside;
  });

/** The tile whose middle is nearest to a place, -1 where there are no tiles. */
const tileNearest = (x, y) =>
  nearest((index) => Math.hypot(xOf(index) + footprint / 2 - x, yOf(index) + footprint / 2 - y));

/** Where a reader finds a place, in pixels and in millimetres. */
function placeText(x, y) {
  const [left, top] = content.origin;
  const mm = (value) => ((value * mpp) / 1000).toFixed(2);
  const px = (value) => Math.round(value).toLocaleString("en");
  const inMm = mpp > 0 ? ` (${mm(x - left)}, ${mm(y - top)} mm)` : "";
  return `x ${px(x - left)}, y ${px(y - top)} px${inMm}`;
}

/** An area with two digits, so that none is claimed that is not known. */
function areaText(mm2) {
  return `${mm2 >= 100 ? Math.round(mm2).toLocaleString("en") : Number(mm2.toPrecision(2))} mm²`;
}
