// The heatmap of a region: one score, drawn over the slide with a colour scale of its own.

const LAYER_CAM = "cam";
const CAM_STEPS = 254; // from the lowest value to the highest, as 1 to 255; 0 is no value
const { cam } = content; // null: there is none
const camSteps = cam === null ? null : bytesOf(cam.steps);
const camShown = () => cam !== null && layer.show === LAYER_CAM;
const camPicture = element("canvas");

/** Colour the heatmap: the farther from 0, the less of the slide is seen. */
function paintCam() {
  [camPicture.width, camPicture.height] = cam.cells;
  const data = new ImageData(...cam.cells);
  for (let at = 0; at < camSteps.length; at++) {
    if (camSteps[at]) data.data.set(camColour((camValue(at) - cam.start) / (cam.end - cam.start || 1)), 4 * at);
  }
  camPicture.getContext("2d").putImageData(data, 0, 0);
}

const camValue = (at) => cam.lowest + ((camSteps[at] - 1) / CAM_STEPS) * (cam.highest - cam.lowest);

const camNumber = (value) => Number(value.toPrecision(cam.start ? 3 : 2)).toString().replace("-", "−");

/** Colour and opacity of a share of the scale, -1 to 1. */
function camColour(share) {
  const strength = Math.min(1, cam.signed ? Math.abs(share) : Math.max(0, share));
  return [...cam.colours[share < 0 ? 1 : 0], Math.round(255 * strength)];
}

/** What the heatmap says of a place, null where it says nothing. */
function camAt(x, y) {
  const [left, top, width, height] = cam.box;
  const column = Math.floor(((x - left) / width) * cam.cells[0]);
  const row = Math.floor(((y - top) / height) * cam.cells[1]);
  if (column < 0 || row < 0 || column >= cam.cells[0] || row >= cam.cells[1]) return null;
  const at = row * cam.cells[0] + column;
  return camSteps[at] ? camValue(at) : null;
}

function drawCam(pen) {
  const [left, top, width, height] = cam.box;
  const box = [place.left + left * place.scaleX, place.top + top * place.scaleY, width * place.scaleX, height * place.scaleY];
  pen.globalAlpha = Math.min(1, 1.6 * layer.opacity); // its own opacity is that of its strongest places
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(camPicture, ...box);
  pen.globalAlpha = 1;
  strokeBox(pen, box, THIN);
}

/** The scale of the heatmap with its numbers, in place of the legend of the classes. */
function showCamLegend() {
  root.classList.toggle("cam", camShown());
  if (!camShown()) return;
  paintScale("cam-ramp", (step) => camColour(cam.signed ? step / 127.5 - 1 : step / 255));
  byId("cam-low").textContent = camNumber(cam.signed ? -cam.end : cam.start);
  byId("cam-high").textContent = camNumber(cam.end);
  byId("cam-explained").textContent = cam.explained;
  const [first, second] = cam.ends;
  byId("cam-for").textContent = first === null ? "" : `for ${first}`;
  byId("cam-against").textContent = !cam.signed ? "" : second === null ? "against it" : `for ${second}`;
  byId("cam-unit").textContent = cam.unit === "" ? "without a unit" : cam.unit;
}

function goToCam() {
  const [left, top, width, height] = cam.box;
  const edge = 0.05 * Math.max(width, height);
  show(left - edge, top - edge, width + 2 * edge, height + 2 * edge);
}
