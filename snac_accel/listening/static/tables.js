// Tables whose columns sort: each heading is a button that says which way.
"use strict";

// `headers`: texts. `rows`: lists of {text, value, content}; `value` sorts, else `text`; `content` is shown in its place.
function sortableTable(caption, headers, rows, { isChosen = null } = {}) {
  const body = element("tbody");
  const made = rows.map((cells, place) => ({ cells, place, row: bodyRow(cells) }));
  const headings = headers.map((header, column) => {
    const button = element("button", { type: "button", class: "sort", click: () => sortBy(column) }, header);
    return element("th", { scope: "col" }, button);
  });
  const table = element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, headings)), body);
  body.append(...made.map(({ row }) => row));
  let sorted = { column: -1, direction: 1 };

  function sortBy(column) {
    sorted = { column, direction: sorted.column === column ? -sorted.direction : 1 };
    made.sort((one, other) => compareCells(one.cells[column], other.cells[column], sorted.direction) || one.place - other.place);
    body.append(...made.map(({ row }) => row));
    headings.forEach((heading, index) => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", sorted.direction > 0 ? "ascending" : "descending");
    announce(`sorted by ${headers[column]}, ${sorted.direction > 0 ? "ascending" : "descending"}`);
  }

  function bodyRow(cells) {
    return element("tr", {}, cells.map((cell, index) => {
      const isNumber = cell.value !== null && cell.value !== undefined;
      return element(index ? "td" : "th", { scope: index ? null : "row", class: isNumber ? "number" : null }, cell.content || cell.text);
    }));
  }

  return { wrapper: element("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": caption }, table), order: () => made.map(({ place }) => place), rows: made };
}

// What has no value comes last, whichever way the others go.
function compareCells(one, other, direction) {
  const numbers = [one.value, other.value].map((value) => (value === undefined ? null : value));
  if (numbers[0] === null && numbers[1] === null) return direction * one.text.localeCompare(other.text, undefined, { numeric: true });
  if (numbers[0] === null || numbers[1] === null) return numbers[0] === null ? 1 : -1;
  return direction * (numbers[0] - numbers[1]);
}

function summaryTable({ title, note, headers, rows }) {
  const cells = rows.map((row) => row.map(([text, value]) => ({ text, value })));
  const table = sortableTable(title, headers, cells);
  return element("div", { class: "summary-table" }, element("h3", {}, title), element("p", { class: "note" }, note), table.wrapper);
}
