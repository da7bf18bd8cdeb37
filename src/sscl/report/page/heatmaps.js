// Heatmaps: drawn once, at full opacity, on a canvas over the tile; the slider sets the canvas's CSS opacity, which is
// the same blend.

const MAP_SIDE_PX = Math.min(gallery.size_px, 256); // of the canvas; above that a map has nothing more to show
const CANVAS_BYTES = 64 * 2 ** 20; // that heatmaps out of sight may keep
const FRAME_MS = 8; // of a frame, for drawing heatmaps
const colours = bytesOf(gallery.colours);
const axis = axisOf(gallery.map_side, MAP_SIDE_PX);
const line = new Float32Array(gallery.map_side); // of the map, between two of its rows
const kept = new Map(); // tile's index -> its canvas, the least used first

/** For each pixel of a line: the cells it lies between, and how far from the first; edges repeat, centres align. */
function axisOf(cells, pixels) {
  const low = new Uint16Array(pixels);
  const high = new Uint16Array(pixels);
  const part = new Float32Array(pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const place = Math.max(0, ((pixel + 0.5) * cells) / pixels - 0.5);
    low[pixel] = Math.min(Math.floor(place), cells - 1);
    high[pixel] = Math.min(low[pixel] + 1, cells - 1);
    part[pixel] = place - low[pixel];
  }
  return { low, high, part };
}

function drawMap(canvas, tile) {
  const { low, high, part } = axis;
  const side = gallery.map_side;
  const values = bytesOf(tile.map);
  const image = new ImageData(MAP_SIDE_PX, MAP_SIDE_PX);
  const pixels = image.data;
  for (let y = 0, at = 0; y < MAP_SIDE_PX; y++) {
    const above = low[y] * side;
    const below = high[y] * side;
    for (let x = 0; x < side; x++) line[x] = values[above + x] + part[y] * (values[below + x] - values[above + x]);
    for (let x = 0; x < MAP_SIDE_PX; x++, at += 4) {
      const value = line[low[x]] + part[x] * (line[high[x]] - line[low[x]]);
      const level = 3 * Math.round(value);
      pixels[at] = colours[level];
      pixels[at + 1] = colours[level + 1];
      pixels[at + 2] = colours[level + 2];
      pixels[at + 3] = gallery.alpha * value; // rounded by the array
    }
  }
  canvas.width = canvas.height = MAP_SIDE_PX;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const waiting = []; // cells whose heatmap is not drawn yet
let drawing = false;

function drawSoon() {
  if (drawing || !waiting.length) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const end = performance.now() + FRAME_MS;
    while (waiting.length && performance.now() < end) {
      const { canvas, index } = waiting.shift();
      if (canvas.isConnected) drawMap(canvas, tiles[index]);
      else kept.delete(index); // scrolled past before its turn
    }
    drawSoon();
  });
}

/** The canvas of a tile in the grid: an old one where it is still there. */
function canvasOf(index) {
  let canvas = kept.get(index);
  kept.delete(index);
  if (canvas === undefined) {
    canvas = element("canvas", { className: "heat", "aria-hidden": "true" });
    waiting.push({ canvas, index });
  }
  kept.set(index, canvas);
  for (const [old, past] of kept) {
    if (kept.size * MAP_SIDE_PX ** 2 * 4 <= CANVAS_BYTES) break;
    if (!past.isConnected && old !== index) kept.delete(old);
  }
  return canvas;
}

function boxElement(corners, className) {
  const box = element("div", { className, "aria-hidden": "true" });
  const [x0, y0, x1, y1] = corners.map((value) => (100 * value) / gallery.size_px);
  Object.assign(box.style, { left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` });
  return box;
}

/** What shows a tile: its picture, the heatmap over it, the boxes over both. */
function layers(index, canvas) {
  const tile = tiles[index];
  const found = [];
  const picture = element("img", { alt: blind ? nameOf(index) : `Tile ${tile.id}`, decoding: "async", draggable: false });
  if (tile.image.startsWith("data:image/")) picture.src = tile.image;
  found.push(picture);
  if (canvas) found.push(canvas);
  if (canvas && tile.box !== null) {
    found.push(...tile.further.map((corners) => boxElement(corners, "box further")).reverse(), boxElement(tile.box, "box"));
  }
  return found;
}
