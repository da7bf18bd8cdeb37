// Folded sections: all opened by a button, and for print; by a link, the browser itself opens the one that it leads to.

const folded = [...document.querySelectorAll("details.section")];
const openAll = document.getElementById("page-open-all");

function showAll(open) {
  for (const one of folded) one.open = open;
}

function nameOpenAll() {
  openAll.textContent = folded.every((one) => one.open) ? "Close all sections" : "Open all sections";
}

if (folded.length) {
  openAll.hidden = false;
  nameOpenAll();
  openAll.addEventListener("click", () => showAll(!folded.every((one) => one.open)));
  for (const one of folded) one.addEventListener("toggle", nameOpenAll);
  let before = []; // which were open when printing began
  addEventListener("beforeprint", () => {
    before = folded.map((one) => one.open);
    showAll(true);
  });
  addEventListener("afterprint", () => before.forEach((open, at) => (folded[at].open = open)));
  // Not all browsers open what a link leads to, and the gallery above it has only now its height.
  const reveal = (behavior) => {
    const closed = document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest("details.section");
    if (closed) {
      closed.open = true;
      closed.querySelector(".inside").scrollIntoView({ behavior });
    }
  };
  addEventListener("hashchange", () => reveal("auto"));
  reveal("instant");
}
