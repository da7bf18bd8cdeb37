// The report's data, and what is known about each tile.

const gallery = content.gallery;
const tiles = gallery.tiles;
const inWorksheet = () => true; // which tiles have a row in the downloaded worksheet
const className = (index) => (index < 0 ? "unknown" : gallery.classes[index]);

const names = new Intl.Collator("en", { numeric: true });
const nameRank = new Map([...tiles].sort((a, b) => names.compare(a.id, b.id)).map((tile, rank) => [tile.id, rank]));
const facts = tiles.map((tile) => ({
  confidence: tile.probabilities[tile.prediction],
  agreement: fractionOf(tile.agreement),
  wrong: tile.label >= 0 && tile.label !== tile.prediction,
  right: tile.label >= 0 && tile.label === tile.prediction,
  abstained: tile.decided === false,
  name: nameRank.get(tile.id),
  text: `${tile.id}\n${tile.group ?? ""}`.toLowerCase(),
}));

/** "6/7" as a number, null for any other text. */
function fractionOf(text) {
  const found = /^(\d+)\/(\d+)$/.exec(text ?? "");
  return found && Number(found[2]) > 0 ? Number(found[1]) / Number(found[2]) : null;
}

function outcomeOf(index) {
  const { wrong, right, abstained } = facts[index];
  const word = wrong ? "wrong" : right ? "correct" : "true class unknown";
  return abstained ? `${word}, abstained` : word;
}
