// The strip of tiles that are worth a look: a click shows where they are.

const REVIEWED = "reviewed";
let stripRows = [];

function fillGroups() {
  const names = content.groups.map(({ label }, at) => [
    String(at),
    label === null ? "least certain" : `most certain: ${className(label)}`,
  ]);
  const options = [...names, [REVIEWED, "reviewed"]].map(([value, text]) => element("option", { value, textContent: text }));
  byId("group").replaceChildren(...options);
}

function fillStrip() {
  const group = byId("group").value;
  byId("group-line").hidden = blind; // its groups tell what is predicted
  byId("blind-order").hidden = !blind;
  if (blind) stripRows = [...inStrip].sort((a, b) => blindRanks()[a] - blindRanks()[b]);
  else if (group === REVIEWED) stripRows = [...reviews.keys()].map((id) => indexOf.get(id)).filter((index) => index !== undefined);
  else stripRows = content.groups[Number(group)]?.rows ?? [];
  byId("strip").replaceChildren(...stripRows.map(thumb));
  if (!stripRows.length) byId("strip").append(element("p", { className: "quiet", textContent: "none yet" }));
  markStrip();
  drawOver();
}

function thumb(index) {
  const hidden = veiled(index);
  const image = pictureOf(index);
  const dot = element("span", { className: "swatch" });
  if (!hidden) dot.style.background = `rgb(${content.colours[tiles[index].prediction].join(" ")})`;
  if (!hidden && facts[index].abstained) dot.classList.add("hatched");
  const text = hidden
    ? [nameOf(index)]
    : [dot, element("bdi", { textContent: className(tiles[index].prediction) }), element("span", { className: "confidence", textContent: percent(facts[index].confidence) })];
  const button = element(
    "button",
    { type: "button", className: "thumb" },
    image === "" ? element("span", { className: "no-picture" }) : element("img", { src: image, alt: "", decoding: "async" }),
    element("span", { className: "thumb-text" }, ...text),
  );
  button.dataset.index = index;
  return button;
}

function markStrip() {
  for (const button of byId("strip").querySelectorAll(".thumb")) {
    const index = Number(button.dataset.index);
    const { review: word, note } = reviewOf(index);
    button.dataset.review = word;
    button.classList.toggle("noted", note !== "");
    if (index === chosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  const at = stripRows.indexOf(chosen);
  byId("strip-place").textContent = at < 0 ? count(stripRows.length, "tile") : `${at + 1} of ${stripRows.length}`;
}

/** Go to the next tile of the strip, or that many further. */
function step(by) {
  if (!stripRows.length) return;
  const at = stripRows.indexOf(chosen);
  const next = at < 0 ? (by > 0 ? 0 : stripRows.length - 1) : (at + by + stripRows.length) % stripRows.length;
  choose(stripRows[next], { move: true });
  byId("strip").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
}
