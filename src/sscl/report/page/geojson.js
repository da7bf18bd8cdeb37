// Boxes as GeoJSON, which QuPath opens.

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

function feature(tile, index) {
  const scale = (tile.source_px ?? gallery.size_px) / gallery.size_px;
  const [x0, y0, x1, y1] = tile.box.map((value) => Math.round(1000 * value * scale) / 1000);
  const probabilities = tile.probabilities.map((value, label) => [`Probability: ${className(label)}`, value]);
  const { review, note } = reviewOf(index);
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
        Pixels: tile.source_px === null ? `of the ${gallery.size_px} px tile` : "of the file",
        ...(review === "" ? {} : { Review: review }),
        ...(note === "" ? {} : { Note: note }),
      },
    },
  };
}

function downloadBoxes(indices, name) {
  const features = indices.filter((index) => tiles[index].box !== null).map((index) => feature(tiles[index], index));
  download(name, "application/geo+json", [JSON.stringify({ type: "FeatureCollection", features }, null, 1)]);
}
