// A click on a column's head, or Enter on it, sorts by the column, numbers as numbers; the next reverses the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.addEventListener("keydown", event => event.key === "Enter" && head.click());
    head.addEventListener("click", () => sort(head, column));
  });
  const sort = (head, column) => {
    const order = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order === 1 ? "ascending" : "descending");
    const key = row => row.cells[column].textContent.trim();
    const compare = (a, b) => {
      if (!a || !b) return a ? -1 : b ? 1 : 0;  // empty cells last, whatever the order
      const numbers = [Number(a), Number(b)];
      return order * (numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1]);
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b)));
    table.tBodies[0].append(...rows);
  };
}
