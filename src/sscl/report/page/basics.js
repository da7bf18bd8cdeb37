// Small functions for every page with a worksheet: elements, texts, files, questions.
//
// The scripts of a page run as one function, in the order of __init__.py or slide_page.py. All text of the report goes in
// through textContent: no string becomes HTML.

const content = JSON.parse(document.getElementById("page-data").textContent);
const root = document.documentElement;
const byId = (id) => document.getElementById(`page-${id}`);
const REVIEWS = ["agree", "disagree", "unsure"];

/** A new element; `properties` are its DOM properties, those with a hyphen its attributes. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** A fraction as whole percent that never claims certainty: 0.9996 is >99%. */
function percent(fraction) {
  if (fraction >= 0.995 && fraction < 1) return ">99%";
  if (fraction <= 0.005 && fraction > 0) return "<1%";
  return `${Math.round(100 * fraction)}%`;
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function download(name, kind, parts) {
  const url = URL.createObjectURL(new Blob(parts, { type: kind }));
  const link = element("a", { href: url, download: name.replace(/[^\w.-]+/g, "_").slice(-120) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // a slow disk may still be reading
}

/** Ask before something is lost; resolves to the answer chosen, or null. */
function ask(text, answers) {
  const dialog = byId("ask");
  byId("ask-text").textContent = text;
  return new Promise((resolve) => {
    let chosen = null;
    const buttons = [...answers, "Cancel"].map((answer) => {
      const button = element("button", { type: "button", textContent: answer });
      button.addEventListener("click", () => {
        chosen = answer === "Cancel" ? null : answer;
        dialog.close();
      });
      return button;
    });
    byId("ask-answers").replaceChildren(...buttons);
    dialog.addEventListener("close", () => resolve(chosen), { once: true });
    dialog.showModal();
    buttons.at(-1).focus(); // Enter by accident does no harm
  });
}

function say(text) {
  byId("message").textContent = text;
}

function reviewButtons(index, words = false) {
  return REVIEWS.map((word) => {
    const button = element("button", {
      type: "button",
      className: word,
      tabIndex: words ? 0 : -1,
      title: word,
      "aria-label": word,
      textContent: words ? word : word[0].toUpperCase(),
    });
    button.dataset.review = word;
    if (index !== null) button.dataset.index = index;
    return button;
  });
}

/** Paint the canvas of a colour scale; `colourOf`: red, green, blue and opacity of each of its 256 steps. */
function paintScale(id, colourOf) {
  const data = new ImageData(256, 1);
  for (let step = 0; step < 256; step++) data.data.set(colourOf(step), 4 * step);
  byId(id).getContext("2d").putImageData(data, 0, 0);
}

function probabilityRow(name, value) {
  const bar = element("div", { className: "bar" });
  bar.style.width = `${100 * value}%`;
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, element("bdi", { textContent: name })),
    element("td", { className: "bars", "aria-hidden": "true" }, bar),
    element("td", { className: "number", textContent: value.toFixed(3) }),
  );
}
