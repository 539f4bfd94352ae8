// Cells of the Choose screen's table: sparklines, type chips, pins, and the one-click type editor.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const node = (tag, attributes = {}, parent = null) => {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.appendChild(element);
    return element;
  };

  // Type table and helpers; a row's cells are [index in types, bytes, log10 of the error].
  let types = [];
  let byName = new Map();
  let source = "";
  const bits = (name) => byName.get(name)?.[1] ?? 0;
  const colour = (name) => byName.get(name)?.[2] ?? "#ccc";
  const cellOf = (row, name) => row.cells.find((cell) => types[cell[0]][0] === name);
  const size = (row) => cellOf(row, row.type)?.[1] ?? (row.weights * bits(row.type)) / 8;
  const told = (bytes) => {
    for (const unit of ["B", "KiB", "MiB", "GiB"]) {
      if (Math.abs(bytes) < 1024) return unit === "B" ? `${bytes.toFixed(0)} B` : `${bytes.toFixed(2)} ${unit}`;
      bytes /= 1024;
    }
    return `${bytes.toFixed(2)} TiB`;
  };
  const count = (n) => (n >= 1e9 ? `${(n / 1e9).toPrecision(3)} B` : n >= 1e6 ? `${(n / 1e6).toPrecision(3)} M` : n.toLocaleString("en"));

  const chip = (type) => {
    const element = document.createElement("span");
    element.className = "qt-chip";
    element.style.background = colour(type);
    element.textContent = type;
    return element;
  };

  // [[bits, log10 error], ...] by rising bits, without those of 16 bits; all rows share one scale, so that a line higher up costs more.
  const drawn = (row) => row.cells.filter((cell) => cell[2] !== null && types[cell[0]][1] < 16).map((cell) => [types[cell[0]][1], cell[2]]);
  let extent = [0, 1, 0, 1];
  const measure = (all) => {
    extent = [Infinity, -Infinity, Infinity, -Infinity];
    for (const row of all) {
      for (const [x, y] of drawn(row)) extent = [Math.min(extent[0], x), Math.max(extent[1], x), Math.min(extent[2], y), Math.max(extent[3], y)];
    }
  };
  const damage = (row) => 10 ** (cellOf(row, row.type)?.[2] ?? -Infinity);
  const figure = (value) => (value < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(2)));
  // The dot marks the chosen type.
  const spark = (params) => {
    const [w, h] = [96, 24];
    const svg = node("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, "aria-hidden": "true" });
    let best = Infinity;
    const all = drawn(params.data);
    const points = all.filter((point) => point[1] < best && ((best = point[1]), true));
    if (!points.length) return svg;
    const [x0, x1, y0, y1] = extent;
    const place = ([bits, error]) => [3 + ((bits - x0) / (x1 - x0 || 1)) * (w - 6), 3 + ((y1 - error) / (y1 - y0 || 1)) * (h - 6)];
    node("polyline", { points: points.map((p) => place(p).join(",")).join(" "), fill: "none", stroke: "var(--qt-accent)", "stroke-width": 1.4 }, svg);
    const here = all.find((p) => p[0] === bits(params.data.type));
    if (here) {
      const [x, y] = place(here);
      node("circle", { cx: x, cy: y, r: 3, fill: "var(--qt-text)", stroke: "var(--qt-surface)", "stroke-width": 1 }, svg);
    }
    return svg;
  };

  const chosen = (params) => {
    const box = document.createElement("span");
    box.className = "qt-chosen";
    box.appendChild(chip(params.value));
    const arrow = document.createElement("span");
    arrow.textContent = "▾";
    arrow.className = "qt-muted";
    arrow.setAttribute("aria-hidden", "true");
    box.appendChild(arrow);
    return box;
  };

  const pin = (params) => {
    const box = document.createElement("span");
    box.textContent = params.value ? "●" : "○";
    box.className = params.value ? "qt-pin qt-pin-on" : "qt-pin";
    box.title = params.value ? "Pinned: solving leaves it alone" : "Pin this type";
    return box;
  };

  class TypeEditor {
    init(params) {
      this.params = params;
      this.value = params.value;
      this.element = document.createElement("div");
      this.element.className = "qt-type-editor";
      this.element.setAttribute("role", "listbox");
      this.element.setAttribute("aria-label", `Type of ${params.data.name}`);
      this.element.tabIndex = 0;
      const here = cellOf(params.data, params.value);
      this.options = params.data.cells.map((cell) => {
        const type = types[cell[0]][0];
        const more = here ? cell[1] - here[1] : 0;
        const change = cell[2] === null ? "no loss" : here?.[2] == null ? "" : `error ×${(10 ** (cell[2] - here[2])).toPrecision(2)}`;
        const hint = !here ? told(cell[1]) : cell === here ? "as chosen" : `${more < 0 ? "−" : "+"}${told(Math.abs(more))}, ${change}`;
        const option = document.createElement("div");
        option.className = "qt-type-option";
        option.setAttribute("role", "option");
        option.dataset.type = type;
        option.appendChild(chip(type));
        const words = document.createElement("span");
        words.textContent = hint;
        words.className = "qt-small qt-muted qt-num";
        option.appendChild(words);
        option.addEventListener("click", () => this.take(type));
        this.element.appendChild(option);
        return option;
      });
      this.mark();
      this.element.addEventListener("keydown", (event) => this.key(event));
    }
    getGui() {
      return this.element;
    }
    afterGuiAttached() {
      // The grid's popup is a dialog to screen readers, and has no name of its own.
      this.element.closest('[role="dialog"]')?.setAttribute("aria-label", this.element.getAttribute("aria-label"));
      this.element.focus();
      this.current()?.scrollIntoView({ block: "center" });
    }
    isPopup() {
      return true;
    }
    getPopupPosition() {
      return "under";
    }
    getValue() {
      return this.value;
    }
    current() {
      return this.options.find((option) => option.dataset.type === this.value);
    }
    mark() {
      for (const option of this.options) option.setAttribute("aria-selected", String(option.dataset.type === this.value));
    }
    take(type) {
      this.value = type;
      this.params.stopEditing();
    }
    key(event) {
      const at = this.options.indexOf(this.current());
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        event.stopPropagation();
        const next = Math.max(0, Math.min(this.options.length - 1, at + (event.key === "ArrowDown" ? 1 : -1)));
        this.value = this.options[next].dataset.type;
        this.mark();
        this.options[next].scrollIntoView({ block: "nearest" });
      } else if (event.key === "Enter") {
        event.stopPropagation();
        this.params.stopEditing();
      }
    }
  }

  // Merge changes into rows by name; only what is visible is drawn again.
  const change = (api, changes) => {
    for (const [name, values] of Object.entries(changes)) {
      const row = api.getRowNode(name);
      if (row) row.updateData(Object.assign(row.data, values));
    }
  };

  // Types by place among the rows as they were loaded, e.g. {"Q4_K": [0, 7]}. A drag sends more of them than can be drawn:
  // the latest count, and they wait until the figures on top have been painted.
  let rows = [];
  let waiting = null;
  const setTypes = (api, groups) => {
    const isFirst = waiting === null;
    waiting ??= new Map();
    for (const [type, places] of Object.entries(groups)) for (const place of places) waiting.set(place, type);
    if (isFirst) requestAnimationFrame(() => setTimeout(() => applyTypes(api)));
  };
  const applyTypes = (api) => {
    const changes = waiting;
    waiting = null;
    const changed = new Set();
    for (const [place, type] of changes) {
      const row = rows[place];
      if (!row) continue;
      row.type = type;
      changed.add(row.name);
    }
    if (!changed.size || api.isDestroyed()) return;
    const shown = api.getRenderedNodes().filter((node) => changed.has(node.id));
    if (shown.length) api.refreshCells({ rowNodes: shown, columns: ["type", "bits", "spark", "damage"], force: true });
    clearTimeout(settling);
    settling = setTimeout(() => settle(api), 400);
  };
  // Once the types rest: the order may rest on them.
  let settling = null;
  const settle = (api) => {
    if (api.isDestroyed()) return;
    if (api.getColumnState().some((column) => column.sort && ["type", "bits", "damage"].includes(column.colId))) api.refreshClientSideRowModel("sort");
  };

  const tell = (kind, value) => emitEvent("quantailor-choose", { kind, value });
  const listen = (api) => {
    api.addEventListener("cellClicked", (event) => tell(event.column.getColId() === "pinned" ? "pin" : "row", event.data.name));
    api.addEventListener("cellKeyDown", (event) => {
      if (event.column.getColId() === "pinned" && [" ", "Enter"].includes(event.event.key)) tell("pin", event.data.name);
      if (event.column.getColId() === "name" && event.event.key === "Enter") tell("row", event.data.name);
    });
    api.addEventListener("cellValueChanged", (event) => {
      if (event.column.getColId() === "type" && event.oldValue !== event.newValue) tell("type", [event.data.name, event.newValue]);
    });
    api.addEventListener("selectionChanged", () => tell("ticks", api.getSelectedNodes().map((node) => node.id)));
  };
  // What narrow tables leave out, so that types and pins stay in sight: [columns, least width of the table].
  const WIDTHS = [[["weights", "bits"], 690], [["spark"], 570], [["damage"], 440]];
  const fit = (api, width) => WIDTHS.forEach(([columns, least]) => api.setColumnsVisible(columns, width >= least));
  const load = async (api, url, selected) => {
    if (!source) listen(api);
    api.addEventListener("gridSizeChanged", (event) => fit(api, event.clientWidth));
    fit(api, document.querySelector(".qt-choose-grid")?.clientWidth || 1000);
    source = url;
    const answer = await fetch(url);
    if (!answer.ok) return;
    const data = await answer.json();
    types = data.types;
    byName = new Map(types.map((type) => [type[0], type]));
    rows = data.rows;
    measure(rows);
    api.setGridOption("rowData", rows);
    const row = selected && api.getRowNode(selected);
    current = selected;
    if (row) api.ensureNodeVisible(row, "middle");
  };
  // What the map says of a tensor: before and after, and what it costs.
  const describe = (name) => {
    const row = rows.find((each) => each.name === name);
    if (!row) return "";
    const cost = damage(row) ? `damage ${figure(damage(row))}` : "no loss";
    return `${row.base} ${told((row.weights * bits(row.base)) / 8)} → ${row.type} ${told(size(row))}, ${cost}`;
  };
  let current = null;
  const mark = (api, name, show) => {
    // Not by redrawing rows: that would close an open editor.
    current = name;
    for (const row of document.querySelectorAll(".qt-choose-grid .ag-row")) row.classList.toggle("qt-row-current", row.getAttribute("row-id") === name);
    const row = name && api.getRowNode(name);
    if (row && show) api.ensureNodeVisible(row, null);
  };
  let shown = null;
  const filter = (api, places) => {
    shown = places && new Set(places.map((place) => rows[place]?.name));
    api.onFilterChanged();
  };
  const isFiltered = () => shown !== null;
  const passes = (name) => shown.has(name);
  const isCurrent = (name) => name === current;
  const tick = (api, names) => {
    api.deselectAll();
    api.setNodesSelected({ nodes: names.map((name) => api.getRowNode(name)).filter(Boolean), newValue: true });
  };

  // On to what follows the table; the grid's own way out leads back into rows that are drawn beyond its edge.
  const leave = () => {
    const grid = document.querySelector(".qt-choose-grid");
    const follows = (part) => grid.compareDocumentPosition(part) & Node.DOCUMENT_POSITION_FOLLOWING && !grid.contains(part);
    const parts = [...document.querySelectorAll("a[href], button:enabled, input:enabled, [tabindex='0']")];
    const next = parts.find((part) => follows(part) && part.tabIndex >= 0 && part.getClientRects().length);
    setTimeout(() => next?.focus());
    return true;
  };
  // Tab goes from row to row, arrow keys within one; above the first row are the headings, and behind the last one it leaves the table.
  const nextRow = ({ api, backwards, editing, nextCellPosition, previousCellPosition: { rowIndex, rowPinned, column } }) => {
    if (editing) return nextCellPosition ?? false;
    const next = rowIndex + (backwards ? -1 : 1);
    if (next >= api.getDisplayedRowCount()) return leave();
    return { rowIndex: next, rowPinned, column };
  };

  window.quantailorChoose = { nextRow, spark, chosen, pin, TypeEditor, change, setTypes, bits, size, told, count, load, tick, mark, filter, isFiltered, passes, isCurrent, damage, figure, tell: describe };
})();
