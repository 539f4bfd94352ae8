const figures = JSON.parse(document.getElementById("figures").textContent);
const colours = getComputedStyle(document.documentElement);
const charts = [...document.querySelectorAll(".chart")].map(place => echarts.init(place));

// options name colours by their variables and functions by their numbers
function filled(option) {
  if (typeof option === "string") return option.startsWith("var(--") ? colours.getPropertyValue(option.slice(4, -1)) || option : option;
  if (Array.isArray(option)) return option.map(filled);
  if (option === null || typeof option !== "object") return option;
  return Object.fromEntries(Object.entries(option).map(([key, value]) =>
    key.startsWith(":") ? [key.slice(1), functions[value]] : [key, filled(value)]));
}
const draw = () => charts.forEach((chart, index) => chart.setOption(filled(figures[index]), true));
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(() => charts.forEach(chart => chart.resize())).observe(document.getElementById("main"));

const collator = new Intl.Collator(undefined, {numeric: true});
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const numeric = head.classList.contains("n"), sorted = head.getAttribute("aria-sort");
    const sign = (sorted ? sorted === "ascending" : numeric) ? -1 : 1;
    const compare = (a, b) => numeric ? (a === b ? 0 : a === "" ? 1 : b === "" ? -1 : (a - b) * sign) : collator.compare(a, b) * sign;
    const rows = [...body.rows].map(row => [key(row, column), row]).sort((a, b) => compare(a[0], b[0]));
    body.append(...rows.map(pair => pair[1]));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
  }));
}
