// The slide: OpenSeadragon shows its picture, and over it lie the map, outlines and the scale bar.

const HATCH_PX = 9;
const SCALE_PX = 140; // of the scale bar, at most
const THIN = [[3, "#000000"], [1.5, "#ffffff"]]; // widths and colours of a line, seen on any ground
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const overCanvas = byId("over");
const between = element("canvas"); // where hatching is cut to the undecided cells
const firstOfLevel = []; // place in base.squares of a level's first square
const columnsOf = (level) => Math.ceil(Math.ceil(base.width / 2 ** (base.levels - 1 - level)) / base.square);
const rowsOf = (level) => Math.ceil(Math.ceil(base.height / 2 ** (base.levels - 1 - level)) / base.square);
for (let level = 0, first = 0; level < base.levels; level++) {
  firstOfLevel.push(first);
  first += columnsOf(level) * rowsOf(level);
}
let viewer;
let place = null; // of the picture in the window: x = left + scaleX * x of level 0

function openViewer() {
  viewer = new OpenSeadragon.Viewer({
    element: byId("view"),
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: innerWidth >= 700,
    navigatorPosition: "TOP_RIGHT",
    navigatorSizeRatio: 0.16,
    navigatorAutoFade: false,
    animationTime: still ? 0 : 0.5,
    springStiffness: 8,
    visibilityRatio: 0.3,
    minZoomImageRatio: 0.5,
    maxZoomPixelRatio: base.address === "" ? 10 : 4,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    gestureSettingsTouch: { pinchRotate: false },
    tileSources: {
      width: base.width,
      height: base.height,
      tileSize: base.square,
      tileOverlap: base.overlap,
      minLevel: 0,
      maxLevel: base.levels - 1,
      getTileUrl: squareAt,
      getTileHashKey: (level, x, y) => `${level}/${x}_${y}`,
    },
  });
  viewer.canvas.append(overCanvas); // below the small picture of the slide
  viewer.canvas.setAttribute("role", "application");
  viewer.canvas.setAttribute("aria-label", "The slide: arrows move, plus and minus zoom, shift and arrows choose a tile");
  viewer.innerTracker.keyHandler = viewer.innerTracker.keyDownHandler = null; // keys are this page's own
  viewer.addHandler("open", () => {
    showWhole(true);
    root.dataset.open = "yes";
  });
  for (const name of ["update-viewport", "resize"]) viewer.addHandler(name, drawOver);
  viewer.addHandler("canvas-click", (event) => {
    if (!event.quick) return;
    event.preventDefaultAction = true;
    const [x, y] = levelOf(event.position.x, event.position.y);
    const index = tileAt(x, y);
    if (index >= 0) choose(index);
    showPointer(x, y);
  });
  byId("view").addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const box = byId("view").getBoundingClientRect();
    showPointer(...levelOf(event.clientX - box.left, event.clientY - box.top));
  });
  byId("view").addEventListener("pointerleave", () => showPointer(NaN, NaN));
}

function squareAt(level, x, y) {
  if (base.address !== "") return `${base.address}${level}/${x}_${y}.jpg`;
  return `data:image/jpeg;base64,${base.squares[firstOfLevel[level] + y * columnsOf(level) + x]}`;
}

/** Pixels of the window as pixels of level 0. */
const levelOf = (x, y) => (place === null ? [NaN, NaN] : [(x - place.left) / place.scaleX, (y - place.top) / place.scaleY]);

function findPlace() {
  const item = viewer?.world.getItemAt(0);
  if (!item) return null;
  const from = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
  const to = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(base.width, base.height));
  return {
    left: from.x,
    top: from.y,
    scaleX: (to.x - from.x) / (base.width * base.factor[0]),
    scaleY: (to.y - from.y) / (base.height * base.factor[1]),
  };
}

/** Show a rectangle of level 0. */
function show(x, y, width, height, immediately = false) {
  const item = viewer.world.getItemAt(0);
  if (!item) return;
  const [across, down] = base.factor;
  const box = item.imageToViewportRectangle(new OpenSeadragon.Rect(x / across, y / down, width / across, height / down));
  viewer.viewport.fitBounds(box, immediately || still);
}

const showWhole = (immediately = false) => show(...content.bounds, immediately);

/** Show a tile with what is around it, unless its middle is in sight and it is large enough. */
function showTile(index) {
  if (place === null) return;
  const box = byId("view").getBoundingClientRect();
  const side = footprint * place.scaleX;
  const left = place.left + xOf(index) * place.scaleX;
  const top = place.top + yOf(index) * place.scaleY;
  const [across, down] = [left + side / 2, top + side / 2];
  if (side >= 24 && across > 0 && down > 0 && across < box.width && down < box.height) return;
  const around = 4 * footprint;
  show(xOf(index) - around, yOf(index) - around, footprint + 2 * around, footprint + 2 * around);
}

function drawOver() {
  place = findPlace();
  const { clientWidth: width, clientHeight: height } = byId("view");
  const ratio = devicePixelRatio || 1;
  if (overCanvas.width !== Math.round(width * ratio) || overCanvas.height !== Math.round(height * ratio)) {
    overCanvas.width = Math.round(width * ratio);
    overCanvas.height = Math.round(height * ratio);
  }
  const pen = overCanvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (place === null) return;
  if (layer.on && !blind && camShown()) drawCam(pen);
  else if (layer.on && !blind && cells) drawMap(pen, width, height, ratio);
  drawDamaged(pen);
  drawOutlines(pen);
  drawScale();
}

/** Where the map lies in the window: left, top, width, height. */
function mapBox() {
  const [left, top] = content.grid.start;
  return [
    place.left + left * place.scaleX,
    place.top + top * place.scaleY,
    columns * cellWidth * place.scaleX,
    rowsOfCells * cellHeight * place.scaleY,
  ];
}

function drawMap(pen, width, height, ratio) {
  pen.globalAlpha = layer.opacity;
  pen.imageSmoothingEnabled = layer.smooth;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, ...mapBox());
  pen.globalAlpha = 1;
  if (!layer.undecided || !anyUndecided) return;
  between.width = overCanvas.width; // which empties it
  between.height = overCanvas.height;
  const cut = between.getContext("2d");
  cut.imageSmoothingEnabled = false;
  cut.setTransform(ratio, 0, 0, ratio, 0, 0);
  cut.drawImage(hatch, ...mapBox());
  cut.globalCompositeOperation = "source-in";
  cut.fillStyle = cut.createPattern(hatching(), "repeat");
  cut.fillRect(0, 0, width, height);
  pen.globalAlpha = Math.min(1, 2 * layer.opacity); // it goes as the map does
  pen.drawImage(between, 0, 0, width, height);
  pen.globalAlpha = 1;
}

/** Diagonal lines, black beside white: seen on any colour. */
function hatching() {
  const canvas = element("canvas", { width: HATCH_PX, height: HATCH_PX });
  const pen = canvas.getContext("2d");
  for (const [colour, shift] of [["rgb(0 0 0 / 70%)", 0], ["rgb(255 255 255 / 85%)", 1.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = 1.2;
    pen.beginPath();
    for (const from of [-HATCH_PX, 0, HATCH_PX]) {
      pen.moveTo(from - 2 + shift, HATCH_PX + 2);
      pen.lineTo(from + HATCH_PX + 2 + shift, -2);
    }
    pen.stroke();
  }
  return canvas;
}

function tileBox(x, y) {
  return [place.left + x * place.scaleX, place.top + y * place.scaleY, footprint * place.scaleX, footprint * place.scaleY];
}

function drawDamaged(pen) {
  pen.strokeStyle = "#000000";
  pen.lineWidth = 1.5;
  for (const [x, y] of content.damaged) {
    const [left, top, width, height] = tileBox(x, y);
    pen.beginPath();
    pen.rect(left, top, width, height);
    pen.moveTo(left, top);
    pen.lineTo(left + width, top + height);
    pen.moveTo(left + width, top);
    pen.lineTo(left, top + height);
    pen.stroke();
  }
}

function drawOutlines(pen) {
  for (const index of stripRows) if (index !== chosen) outline(pen, index, THIN, 5);
  if (chosen >= 0) outline(pen, chosen, [[6, "#000000"], [3, "#ffdd00"]], 12);
}

/** A tile's border, at least `least` pixels wide: also to be found on the whole slide. */
function outline(pen, index, strokes, least) {
  const [left, top, width, height] = tileBox(xOf(index), yOf(index));
  const grow = Math.max(0, (least - width) / 2);
  strokeBox(pen, [left - grow, top - grow, width + 2 * grow, height + 2 * grow], strokes);
}

function strokeBox(pen, box, strokes) {
  for (const [lineWidth, colour] of strokes) {
    pen.lineWidth = lineWidth;
    pen.strokeStyle = colour;
    pen.strokeRect(...box);
  }
}

function drawScale() {
  byId("scale").hidden = !mpp; // not known
  if (!mpp) return;
  const um = mpp / place.scaleX; // of a pixel of the window
  const most = SCALE_PX * um;
  const ten = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((times) => times * ten).find((found) => found <= most) ?? ten;
  byId("scale-text").textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  byId("scale-bar").style.width = `${length / um}px`;
}

/** What the map says under the pointer. */
function showPointer(x, y) {
  const cell = Number.isNaN(x) || blind ? -1 : cellAt(x, y);
  const inside = x >= 0 && y >= 0 && x < content.size[0] && y < content.size[1];
  if (!inside) {
    byId("readout").replaceChildren();
    return;
  }
  const parts = [];
  const value = camShown() && !blind ? camAt(x, y) : null;
  if (value !== null) parts.push(element("b", { textContent: `${camNumber(value)} ${cam.unit}  ` }));
  if (cell >= 0) {
    const order = classes.map((_, label) => label).sort((a, b) => means[b][cell] - means[a][cell]);
    for (const label of order.slice(0, 3)) {
      parts.push(element("bdi", { textContent: className(label) }), ` ${means[label][cell].toFixed(3)}  `);
    }
    if (isUndecided(cell)) parts.push(element("b", { textContent: "undecided " }));
    if (over[cell] > 1) parts.push(`mean of ${over[cell]} tiles `);
  } else if (total && !blind) parts.push("no tile ");
  byId("readout").replaceChildren(element("span", {}, ...parts), element("span", { className: "quiet", textContent: placeText(x, y) }));
}
