"use strict";
(() => {
  const body = document.querySelector("#classes tbody");
  if (!body) return;
  const rows = [...body.rows];
  const names = rows.map((row) => row.cells[0].textContent.toLowerCase());

  // Sorting: numbers largest first, names from A; a second click turns the order around. Empty cells come last.

  const headings = [...document.querySelectorAll("#classes thead button")];
  for (const button of headings) {
    button.addEventListener("click", () => {
      const column = button.dataset.column;
      const before = button.parentElement.getAttribute("aria-sort");
      const ascending = before ? before === "descending" : column === "0";
      for (const other of headings) other.parentElement.removeAttribute("aria-sort");
      button.parentElement.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const value = (row) => row.querySelector(`[data-sort-${column}]`).getAttribute(`data-sort-${column}`);
      const compare = (a, b) => (column === "0" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      const ordered = [...rows].sort((first, second) => {
        const [a, b] = [value(first), value(second)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return ascending ? compare(a, b) : compare(b, a);
      });
      body.append(...ordered);
    });
  }

  const search = document.querySelector("#search");
  const count = document.querySelector("#count");
  const find = () => {
    const wanted = search.value.trim().toLowerCase();
    rows.forEach((row, at) => { row.hidden = !names[at].includes(wanted); });
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = `${shown.toLocaleString("en")} class${shown === 1 ? "" : "es"}`;
  };
  search.addEventListener("input", find);
  find();
})();
