// The large view of one tile.

const MOST = 12; // classes whose probability is shown
const MOST_ANSWERS = 10; // buttons of the large view
const large = byId("large");
const largeCanvas = element("canvas", { className: "heat", "aria-hidden": "true" });
const largeReview = large.querySelector(".large-review");
let viewing = false; // until the large view has given the focus back

function openLarge(place, { note = false } = {}) {
  moveTo(place);
  viewing = true;
  large.showModal();
  showLarge();
  if (note) byId("large-note").focus();
  else byId("large-side").focus({ preventScroll: true });
}

function showLarge() {
  const index = shown[current];
  const tile = tiles[index];
  const fact = facts[index];
  const hidden = veiled(index);
  markSeen([index]);
  large.classList.toggle("veiled", hidden);
  byId("large-title").querySelector("bdi").textContent = nameOf(index);
  byId("large-place").textContent =
    `${(current + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}${blind ? "" : `, ${outcomeOf(index)}`}`;
  byId("previous").disabled = current === 0;
  byId("next").disabled = current === shown.length - 1;
  if (tile.map !== "") drawMap(largeCanvas, tile);
  byId("large-heat").replaceChildren(...layers(index, tile.map === "" || hidden ? null : largeCanvas));
  byId("large-plain").replaceChildren(...layers(index, null));
  byId("large-target").textContent =
    tile.map === "" ? tile.remark : [`evidence: ${gallery.target}`, tile.remark].filter(Boolean).join("; ");
  const order = Object.keys(tile.probabilities);
  order.sort((a, b) => tile.probabilities[b] - tile.probabilities[a]);
  const others = gallery.classes.length - Math.min(MOST, order.length);
  const rest = Math.max(0, order.slice(0, MOST).reduce((left, label) => left - tile.probabilities[label], 1));
  byId("large-probabilities").replaceChildren(
    byId("large-probabilities").caption,
    ...order.slice(0, MOST).map((label) => probabilityRow(className(label), tile.probabilities[label])),
    ...(others > 0 ? [probabilityRow(count(others, "other class", "other classes"), rest)] : []),
  );
  const lines = [
    ...(blind ? [] : openFacts(index)),
    ["your blind answer", blindText(index)],
    ["heatmap maximum", tile.map === "" ? "" : `${tile.maximum.toPrecision(3)} (before scaling)`],
    ["box", tile.box === null ? "none" : boxText(tile)],
    ["image file", tile.region === null || blind ? "" : regionText(tile.region)],
  ];
  byId("large-facts").replaceChildren(
    ...lines
      .filter(([, text]) => text !== "")
      .map(([name, text]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: text }))),
  );
  byId("large-box").disabled = !tile.localises;
  byId("large-back").hidden = !blind || hidden;
  fillReview(largeReview, index, MOST_ANSWERS);
  showReviewIn(largeReview, byId("large-note"), index);
}

/** What says, or may say, the true class. */
function openFacts(index) {
  const tile = tiles[index];
  return [
    ["true class", className(tile.label)],
    ["outcome", outcomeOf(index)],
    ["annotators", [tile.agreement === null ? "" : `${tile.agreement} agree`, votesOf(tile)].filter(Boolean).join("; ")],
    ["group", tile.group ?? ""],
    ["loss", tile.loss === null ? "" : tile.loss.toFixed(3)],
  ];
}

function blindText(index) {
  const { blind: own, seen_before: before } = reviewOf(index);
  return own === "" ? "" : `${own}${before === "yes" ? " (the prediction had been on screen)" : ""}`;
}

function votesOf(tile) {
  return tile.votes === null ? "" : `${count(tile.votes, "vote")} for ${className(gallery.classes.length - 1)}`;
}

function boxText(tile) {
  const [x0, y0, x1, y1] = tile.box;
  const fraction = ((x1 - x0) * (y1 - y0)) / gallery.size_px ** 2;
  return `${x1 - x0} × ${y1 - y0} px at (${x0}, ${y0}), ${percent(fraction)} of the ${gallery.size_px} px tile`;
}

function regionText([x, y, width, height]) {
  return `${width} × ${height} px${x || y ? ` at (${x}, ${y})` : ""}`;
}

/** Go on to the next tile where that is wanted. */
function reviewed(index) {
  if (byId("advance").checked && shown[current] === index && current + 1 < shown.length) moveTo(current + 1);
}
