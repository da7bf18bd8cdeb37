// Boxes as GeoJSON: a file for each image, since QuPath imports a file into the image that is open.
//
// A box that covers nearly the whole tile says no place and is left out; one without the peak has a remark.

// Okabe & Ito's colours without black: classes in QuPath.
const CLASS_COLOURS = [
  [0, 114, 178],
  [213, 94, 0],
  [0, 158, 115],
  [204, 121, 167],
  [230, 159, 0],
  [86, 180, 233],
  [240, 228, 66],
];

const rounded = (value) => Math.round(1000 * value) / 1000;

function feature(tile, index) {
  const [left, top, width, height] = tile.region ?? [0, 0, gallery.size_px, gallery.size_px];
  const [x0, x1] = [tile.box[0], tile.box[2]].map((x) => rounded(left + (x * width) / gallery.size_px));
  const [y0, y1] = [tile.box[1], tile.box[3]].map((y) => rounded(top + (y * height) / gallery.size_px));
  const probabilities = Object.entries(tile.probabilities).map(([label, value]) => [`Probability: ${className(label)}`, value]);
  const { blind: named, review, note } = reviewOf(index);
  return {
    type: "Feature",
    geometry: { type: "Polygon", coordinates: [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]] }, // prettier-ignore
    properties: {
      objectType: "annotation",
      name: tile.id,
      image: tile.id,
      classification: {
        name: className(tile.prediction),
        color: CLASS_COLOURS[tile.prediction % CLASS_COLOURS.length],
      },
      measurements: Object.fromEntries([
        ...probabilities,
        ["Heatmap maximum", tile.maximum],
        ["Box threshold", gallery.threshold],
        ["Box fraction of tile", ((tile.box[2] - tile.box[0]) * (tile.box[3] - tile.box[1])) / gallery.size_px ** 2],
      ]),
      metadata: {
        Image: tile.id,
        Explains: gallery.target,
        "True class": className(tile.label),
        Pixels: tile.region === null ? `of the ${gallery.size_px} px tile` : "of the file",
        ...(tile.remark === "" ? {} : { Remark: tile.remark }),
        ...(named === "" ? {} : { "Blind answer": named }),
        ...(review === "" ? {} : { Review: review }),
        ...(note === "" ? {} : { Note: note }),
      },
    },
  };
}

const geojson = (index) =>
  JSON.stringify({ type: "FeatureCollection", features: [feature(tiles[index], index)] }, null, 1);
const fileNames = namesOfFiles(tiles.map((tile) => tile.id)).map((name) => `${name}.geojson`);

function downloadBox(index) {
  download(fileNames[index], "application/geo+json", [geojson(index)]);
}

function downloadBoxes(indices) {
  const boxed = indices.filter((index) => tiles[index].localises);
  const name = `boxes_${content.id}.zip`;
  download(name, "application/zip", zipped(boxed.map((index) => [fileNames[index], geojson(index)])));
  const empty = indices.filter((index) => tiles[index].box === null).length;
  const whole = indices.length - boxed.length - empty;
  const out = [
    whole ? `${count(whole, "box", "boxes")} over nearly the whole tile (no localisation, not assessed)` : "",
    empty ? `${count(empty, "tile")} without positive evidence` : "",
  ].filter(Boolean);
  const left = out.length ? ` Left out: ${out.join(", ")}.` : "";
  say(`${name}: ${count(boxed.length, "GeoJSON file")}, one for each image.${left}`);
}
