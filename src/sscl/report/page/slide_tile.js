// The chosen tile: its picture, probabilities, review and note.

const MOST_BARS = 6;
const MOST_ANSWERS = 8; // buttons

function choose(index, { move = false } = {}) {
  chosen = index;
  if (move) showTile(index);
  showChosen();
  drawOver();
  markStrip();
}

/** Choose the next tile to one side of the chosen one; without one, that in the middle of the window. */
function chooseBeside(across, down) {
  const { clientWidth: width, clientHeight: height } = byId("view");
  const index = chosen < 0 ? tileNearest(...levelOf(width / 2, height / 2)) : tileBeside(chosen, across, down);
  if (index >= 0) choose(index, { move: true });
}

function pictureOf(index) {
  const own = content.pictures[index];
  if (own !== undefined) return `data:image/jpeg;base64,${own}`;
  return base.pictures === "" ? "" : `${base.pictures}${index}.jpg`;
}

function showChosen() {
  byId("none").hidden = chosen >= 0;
  byId("chosen").hidden = chosen < 0;
  if (chosen < 0) return;
  const hidden = veiled(chosen);
  const tile = tiles[chosen];
  const image = byId("picture");
  image.hidden = pictureOf(chosen) === "";
  if (!image.hidden) image.src = pictureOf(chosen);
  const fact = facts[chosen];
  const said = hidden ? ["which class is it?"] : [element("bdi", { textContent: className(tile.prediction) }), ` ${percent(fact.confidence)}`];
  if (!hidden && fact.abstained) said.push(element("span", { className: "abstained", textContent: "undecided" }));
  byId("said").replaceChildren(...said);
  const own = reviewOf(chosen).blind;
  byId("place").textContent = [
    blind ? nameOf(chosen) : `${placeText(xOf(chosen), yOf(chosen))}${coverage[chosen] > 100 || !content.predicted ? "" : `; ${coverage[chosen]}% tissue`}`,
    own === "" ? "" : `you said ${own}`,
  ]
    .filter(Boolean)
    .join("; ");
  const order = classes.map((_, label) => label).sort((a, b) => probability(chosen, b) - probability(chosen, a));
  byId("probabilities").hidden = hidden;
  byId("probabilities").replaceChildren(
    byId("probabilities").caption,
    ...(hidden ? [] : order.slice(0, MOST_BARS).map((label) => probabilityRow(className(label), probability(chosen, label)))),
  );
  fillReview(byId("review"), chosen, MOST_ANSWERS);
  byId("back").hidden = !blind || hidden;
  showReviewIn(byId("review"), byId("note"), chosen);
}

// What worksheet.js and blind.js ask for after a change.
function showReview(index) {
  if (index === chosen) showReviewIn(byId("review"), byId("note"), index);
  markStrip();
}
function redraw(index) {
  if (index === chosen) showChosen();
  fillStrip();
}
function apply() {
  showChosen();
  fillStrip();
}
function setFilters() {
  if (!blind) sawAll();
  apply();
  drawOver();
}
function refresh() {
  apply();
}
function reviewed() {}
function showReviewFilters() {}

/** The map shows what is predicted of every tile. */
function sawAll() {
  seen.add("");
  keepBlind();
}
