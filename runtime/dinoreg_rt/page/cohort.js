// Sorting and filtering of the table of pairs.

const table = document.getElementById("pairs"), rows = [...table.tBodies[0].rows];
const search = document.getElementById("search"), kind = document.getElementById("kind");

function sortBy(header) {
  const column = header.cellIndex, down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.sort ?? "";
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    // Missing values come last, whatever the direction.
    if (x === "" || y === "") return (x === "") - (y === "");
    const numbers = !Number.isNaN(Number(x)) && !Number.isNaN(Number(y));
    return (down ? -1 : 1) * (numbers ? x - y : x.localeCompare(y, undefined, { numeric: true }));
  };
  table.tBodies[0].append(...rows.sort(compare));
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const fits = (!kind.value || row.dataset.kind === kind.value) && words.every((w) => text.includes(w));
    row.hidden = !fits;
    shown += fits;
  }
  document.getElementById("count").textContent = `${shown} of ${rows.length} shown`;
}

for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}
search.addEventListener("input", filter);
kind.addEventListener("change", filter);
filter();
document.body.dataset.ready = "yes";
