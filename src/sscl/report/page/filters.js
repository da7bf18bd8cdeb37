// Which tiles are shown, and in what order.

const filter = { text: "", truth: "", predicted: "", outcome: "", review: "", sort: "least-confident" };

const OUTCOMES = {
  right: ["correct", (fact) => fact.right],
  wrong: ["wrong", (fact) => fact.wrong],
  decided: ["wrong, not abstained", (fact) => fact.wrong && !fact.abstained],
  abstained: ["abstained", (fact) => fact.abstained],
  unknown: ["true class unknown", (fact) => !fact.right && !fact.wrong],
};
const REVIEW_FILTERS = {
  none: ["not reviewed", (own) => own.review === ""],
  any: ["reviewed", (own) => own.review !== ""],
  agree: ["agree", (own) => own.review === "agree"],
  disagree: ["disagree", (own) => own.review === "disagree"],
  unsure: ["unsure", (own) => own.review === "unsure"],
  note: ["with a note", (own) => own.note !== ""],
  unanswered: ["no blind answer", (own) => own.blind === ""],
  answered: ["answered blind", (own) => own.blind !== ""],
};
// What is unknown comes last, ties by name.
const last = (value) => value ?? Infinity;
const SORTS = {
  "least-confident": ["least confident", (index) => facts[index].confidence],
  "most-confident": ["most confident", (index) => -facts[index].confidence],
  loss: ["largest loss", (index) => last(tiles[index].loss === null ? null : -tiles[index].loss)],
  "least-agreement": ["least agreement", (index) => last(facts[index].agreement)],
  "most-agreement": ["most agreement", (index) => last(facts[index].agreement === null ? null : -facts[index].agreement)],
  name: ["name", (index) => facts[index].name],
};

function matches(index) {
  const tile = tiles[index];
  if (filter.review !== "" && !REVIEW_FILTERS[filter.review][1](reviewOf(index))) return false;
  if (blind) return true;
  if (filter.truth !== "" && tile.label !== Number(filter.truth)) return false;
  if (filter.predicted !== "" && tile.prediction !== Number(filter.predicted)) return false;
  if (filter.outcome !== "" && !OUTCOMES[filter.outcome][1](facts[index])) return false;
  const text = filter.text.trim().toLowerCase();
  return text === "" || facts[index].text.includes(text) || reviewOf(index).note.toLowerCase().includes(text);
}

/** Find the tiles that match and show them, from the first on; `keepPlace`: where the reader is. */
function apply({ keepPlace = false } = {}) {
  const before = shown[current];
  const key = blind ? (index) => blindRanks()[index] : SORTS[filter.sort][1];
  const value = tiles.map((_, index) => key(index));
  shown = tiles.map((_, index) => index).filter(matches);
  shown.sort((a, b) => (value[a] === value[b] ? facts[a].name - facts[b].name : value[a] - value[b]));
  places.clear();
  shown.forEach((index, place) => places.set(index, place));
  current = (keepPlace ? places.get(before) : undefined) ?? 0;
  byId("again").hidden = true;
  const wrong = shown.filter((index) => facts[index].wrong).length;
  const abstained = shown.filter((index) => facts[index].abstained).length;
  const known = facts.some((fact) => fact.right || fact.wrong);
  const also = blind ? [] : [known ? `${wrong.toLocaleString("en")} wrong` : "", abstained ? `${abstained.toLocaleString("en")} abstained` : ""];
  const some = shown.length < tiles.length ? `${shown.length.toLocaleString("en")} of ` : "";
  byId("count").textContent = shown.length
    ? [`${some}${count(tiles.length, "tile")}`, also.filter(Boolean).join(", ")].filter(Boolean).join(": ")
    : `0 of ${count(tiles.length, "tile")}`;
  byId("nothing").hidden = shown.length > 0;
  byId("nothing").textContent = tiles.length
    ? "No tile matches these filters. “Clear filters” shows all of them."
    : "This report has no tiles.";
  const boxes = shown.filter((index) => tiles[index].localises).length;
  byId("boxes-file").disabled = boxes === 0;
  byId("boxes-file").textContent = `Download ${count(boxes, "box", "boxes")} (GeoJSON, zip)`;
  const all = ["text", "truth", "predicted", "outcome", "review"].every((name) => filter[name] === "");
  byId("clear").disabled = all;
  for (const button of document.querySelectorAll(".confusion button")) {
    const { true: truth, predicted } = button.dataset;
    button.setAttribute("aria-pressed", String(truth === filter.truth && predicted === filter.predicted));
    button.disabled = blind;
  }
  rebuild();
  const hidden = covered() + GAP_PX - grid.getBoundingClientRect().top;
  if (!keepPlace && hidden > GAP_PX) {
    scrollBy({ top: -hidden, behavior: "instant" }); // a new order is read from its beginning
    fill();
  }
}

function fillSelect(id, options) {
  byId(id).replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
}

/** Set the given filters and clear the others; the order stays. */
function setFilters(given) {
  Object.assign(filter, { text: "", truth: "", predicted: "", outcome: "", review: "" }, given);
  byId("find").value = filter.text;
  byId("true").value = filter.truth;
  byId("predicted").value = filter.predicted;
  byId("outcome").value = filter.outcome;
  byId("review").value = filter.review;
  apply();
}

function onConfusion(event) {
  const { true: truth, predicted } = event.currentTarget.dataset;
  if (event.currentTarget.getAttribute("aria-pressed") === "true") {
    setFilters({});
    return;
  }
  setFilters({ truth, predicted });
  const title = document.getElementById("page-title-gallery");
  toolbar.scrollIntoView({ block: "start" });
  title.focus({ preventScroll: true });
}

/** Filters by review; those of blind answers only in blind review. */
function showReviewFilters() {
  const names = ["", ...Object.keys(REVIEW_FILTERS)].filter((name) => blind || !name.endsWith("answered"));
  fillSelect("review", names.map((name) => [name, name === "" ? "all" : REVIEW_FILTERS[name][0]]));
}
