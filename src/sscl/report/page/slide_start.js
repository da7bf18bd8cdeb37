// Fill the page and listen: the only file that runs anything.

function start() {
  load();
  loadBlind();
  if (location.hash === "#blind") blind = true;
  fillCells();
  fillGroups();
  const [first, of] = content.predicted ? ["predicted class", "probability of"] : ["tiles", "share of"];
  const layers = [[LAYER_PREDICTION, first], ...classes.map((name, label) => [String(label), `${of} ${name}`])];
  if (cam !== null) {
    layers.push([LAYER_CAM, `${cam.method} of a region`]);
    paintCam();
  }
  byId("layer").replaceChildren(...layers.map(([value, text]) => element("option", { value, textContent: text })));
  layer.show = content.positive === null ? LAYER_PREDICTION : String(content.positive);
  byId("layer").value = layer.show;
  byId("undecided-line").hidden = !anyUndecided;
  root.classList.toggle("bare", !content.predicted);
  root.classList.toggle("untiled", !total);
  byId("main").hidden = false;
  if (innerWidth < 700) byId("worksheet").open = false; // a phone shows the slide first
  openViewer();
  showBlind();
  if (!blind) sawAll();
  showLooks();
  showRamp();
  paint();
  fillStrip();
  showChosen();
  showProgress();
  listen();
}

function showLooks() {
  byId("opacity-value").textContent = `${Math.round(100 * layer.opacity)}%`;
  byId("threshold-value").textContent = layer.threshold.toFixed(2);
  byId("threshold").value = Math.round(100 * layer.threshold);
  byId("cells").checked = !layer.smooth;
  byId("smooth").checked = layer.smooth;
  byId("on").checked = layer.on;
}

function setOn(on) {
  layer.on = on;
  showLooks();
  drawOver();
}

function setThreshold(value) {
  layer.threshold = Math.max(0, Math.min(1, value));
  showLooks();
  paint();
}

function setSmooth(smooth) {
  layer.smooth = smooth;
  showLooks();
  drawOver();
}

let byPointer = false; // whether mouse or finger did what was done last

function listen() {
  byId("layer").addEventListener("change", (event) => {
    layer.show = event.target.value;
    layer.only = -1;
    showRamp();
    showCamLegend();
    paint();
    if (camShown()) goToCam();
  });
  byId("opacity").addEventListener("input", (event) => {
    layer.opacity = Number(event.target.value) / 100;
    layer.on = true;
    showLooks();
    drawOver();
  });
  byId("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value) / 100));
  byId("cells").addEventListener("change", () => setSmooth(false));
  byId("smooth").addEventListener("change", () => setSmooth(true));
  byId("undecided").addEventListener("change", (event) => {
    layer.undecided = event.target.checked;
    paint();
  });
  byId("on").addEventListener("change", (event) => setOn(event.target.checked));
  byId("areas").addEventListener("click", (event) => {
    const button = event.target.closest("[data-only]");
    if (button === null) return;
    layer.only = layer.only === Number(button.dataset.only) ? -1 : Number(button.dataset.only);
    paint();
  });
  byId("in").addEventListener("click", () => viewer.viewport.zoomBy(1.6));
  byId("out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.6));
  byId("home").addEventListener("click", () => showWhole());
  byId("keys").addEventListener("click", () => byId("help").showModal());
  byId("group").addEventListener("change", fillStrip);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("strip").addEventListener("click", (event) => {
    const button = event.target.closest(".thumb");
    if (button !== null) choose(Number(button.dataset.index), { move: true });
  });
  byId("review").addEventListener("click", (event) => press(chosen, event.target.dataset));
  byId("review").addEventListener("change", onAnswer);
  byId("back").addEventListener("click", () => takeBack(chosen));
  byId("note").addEventListener("input", (event) => setReview(chosen, { note: event.target.value }));
  listenToWorksheet();
  document.addEventListener("keydown", onKey);
  document.addEventListener("pointerdown", () => (byPointer = true), true);
  document.addEventListener("keydown", () => (byPointer = false), true);
  document.addEventListener("change", ({ target }) => {
    if (byPointer && target.matches("select")) target.blur(); // so that the page's keys work again
  });
  addEventListener("resize", () => requestAnimationFrame(drawOver));
}

function pan(across, down) {
  const { width, height } = viewer.viewport.getBounds();
  viewer.viewport.panBy(new OpenSeadragon.Point(0.2 * across * width, 0.2 * down * height));
  viewer.viewport.applyConstraints();
}

const BESIDE = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  ArrowLeft: () => pan(-1, 0),
  ArrowRight: () => pan(1, 0),
  ArrowUp: () => pan(0, -1),
  ArrowDown: () => pan(0, 1),
  Home: () => showWhole(),
  "+": () => viewer.viewport.zoomBy(1.6),
  "=": () => viewer.viewport.zoomBy(1.6),
  "-": () => viewer.viewport.zoomBy(1 / 1.6),
  ",": () => step(-1),
  ".": () => step(1),
  "[": () => setThreshold(layer.threshold - 0.05),
  "]": () => setThreshold(layer.threshold + 0.05),
  c: () => setSmooth(!layer.smooth),
  h: () => setOn(!layer.on),
  "?": () => byId("help").showModal(),
};

// Keys of a slide of which nothing is predicted: all but those of the strip and the worksheet.
const OF_PREDICTIONS = /^[adun,.0-9]$/;

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const { target, key } = event;
  if (byId("help").open || byId("ask").open) return;
  if (target === byId("note") && key === "Escape") target.blur();
  if (target.matches("textarea, select, input:not([type=checkbox], [type=range])")) return;
  const small = key.length === 1 ? key.toLowerCase() : key;
  if (target.matches("input, pre") && /^(Arrow|Home|End|Page)/.test(key)) return; // moves the slider or the text
  if (!content.predicted && OF_PREDICTIONS.test(small)) return;
  if (event.shiftKey && key in BESIDE) chooseBeside(...BESIDE[key]);
  else if (small in KEYS) KEYS[small]();
  else if (chosen < 0) return;
  else if (small === "n") byId("note").focus();
  else if (!reviewByKey(chosen, small)) return;
  event.preventDefault();
}

start();
