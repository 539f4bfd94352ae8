// A map of tensors by role and layer on one canvas; see tensor_map.py.
const LABELS = 96;
const FOOT = 20;

export default {
  template: `
    <div class="qt-map" style="position: relative">
      <canvas ref="canvas" tabindex="0" role="application" :aria-label="title + '. Arrow keys move, Enter picks.'"
        :style="{ width: '100%', height: height + 'px', cursor: 'crosshair', display: 'block', borderRadius: '6px' }"
        @mousedown="down" @mousemove="move" @mouseup="up" @mouseleave="leave" @keydown="key" @focus="draw" @blur="draw"></canvas>
      <div ref="tip" class="qt-map-tip" v-show="tip" :style="tipStyle">{{ tip }}</div>
      <div class="qt-sr" aria-live="polite">{{ spoken }}</div>
    </div>`,
  props: { title: String, rows: Array, columns: Array, cells: Array, brushable: Boolean, selected: { type: String, default: null } },
  emits: ["pick", "brush"],
  data() {
    return { tip: "", tipStyle: {}, spoken: "", at: [0, 0], from: null, to: null, marked: this.selected };
  },
  computed: {
    height() {
      return this.rows.length * this.rowHeight + FOOT;
    },
    rowHeight() {
      return this.rows.length > 16 ? 13 : this.rows.length > 10 ? 16 : 19;
    },
  },
  watch: {
    // Any update of the element sends its cells anew.
    cells() {
      this.index();
      this.draw();
    },
  },
  created() {
    this.index();
  },
  mounted() {
    this.watching = new ResizeObserver(() => this.draw());
    this.watching.observe(this.$refs.canvas);
    this.draw();
  },
  beforeUnmount() {
    this.watching.disconnect();
  },
  methods: {
    index() {
      this.byPlace = new Map(this.cells.map((cell) => [cell[1] + ":" + cell[2], cell]));
      this.byName = new Map(this.cells.map((cell) => [cell[0], cell]));
    },
    // [[colour, label, places], ...]; drawn once a frame, after what is more urgent.
    change(groups) {
      for (const [colour, label, places] of groups) {
        for (const place of places) {
          this.cells[place][3] = colour;
          this.cells[place][4] = label;
        }
      }
      if (this.spoken && document.activeElement === this.$refs.canvas && !this.from) this.say();
      if (this.drawing) return;
      this.drawing = true;
      requestAnimationFrame(() =>
        setTimeout(() => {
          this.drawing = false;
          this.draw();
        }),
      );
    },
    mark(name) {
      this.marked = name;
      const cell = this.byName.get(name);
      if (cell) this.at = [cell[1], cell[2]];
      this.draw();
    },
    columnWidth() {
      const room = this.$refs.canvas.clientWidth - LABELS - 4;
      return Math.max(2, Math.min(34, room / this.columns.length));
    },
    draw() {
      const canvas = this.$refs.canvas;
      if (!canvas || !canvas.clientWidth) return;
      const scale = window.devicePixelRatio || 1;
      canvas.width = canvas.clientWidth * scale;
      canvas.height = this.height * scale;
      const pen = canvas.getContext("2d");
      pen.scale(scale, scale);
      const style = getComputedStyle(document.body);
      const [text, muted, accent] = ["--qt-text", "--qt-muted", "--qt-accent"].map((name) => style.getPropertyValue(name).trim());
      const [w, h] = [this.columnWidth(), this.rowHeight];
      pen.font = "11px ui-monospace, DejaVu Sans Mono, monospace";
      pen.textBaseline = "middle";
      pen.textAlign = "right";
      pen.fillStyle = muted;
      this.rows.forEach((role, row) => pen.fillText(this.short(role), LABELS - 8, row * h + h / 2));
      pen.textAlign = "center";
      const every = Math.max(1, Math.ceil(26 / w));
      const shown = (column) => this.columns[column] === "—" || (this.columns[0] === "—" ? column - 1 : column) % every === 0;
      this.columns.forEach((label, column) => {
        if (shown(column)) pen.fillText(label, LABELS + column * w + w / 2, this.rows.length * h + FOOT / 2 + 1);
      });
      const gap = w > 6 ? 1 : 0.4;
      for (const [, row, column, colour, , share] of this.cells) {
        const [cw, ch] = [(w - gap) * share, (h - 1) * share];
        pen.fillStyle = colour;
        pen.fillRect(LABELS + column * w + (w - gap - cw) / 2, row * h + (h - 1 - ch) / 2, cw, ch);
      }
      this.frameOf(pen, this.byName.get(this.marked), text, 2);
      if (document.activeElement === canvas) this.frameOf(pen, this.byPlace.get(this.at.join(":")), accent, 2);
      if (this.from && this.to && this.brushable) {
        const [top, left, bottom, right] = this.rectangle();
        pen.strokeStyle = accent;
        pen.lineWidth = 2;
        pen.strokeRect(LABELS + left * w, top * h, (right - left + 1) * w, (bottom - top + 1) * h);
      }
    },
    short(role) {
      return role.length > 13 ? role.slice(0, 12) + "…" : role;
    },
    frameOf(pen, cell, colour, width) {
      if (!cell) return;
      const [w, h] = [this.columnWidth(), this.rowHeight];
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.strokeRect(LABELS + cell[2] * w, cell[1] * h, w, h - 1);
    },
    place(event) {
      const box = this.$refs.canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left - LABELS) / this.columnWidth());
      const row = Math.floor((event.clientY - box.top) / this.rowHeight);
      if (row < 0 || column < 0 || row >= this.rows.length || column >= this.columns.length) return null;
      return [row, column];
    },
    rectangle() {
      const [a, b] = [this.from, this.to];
      return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
    },
    down(event) {
      this.from = this.to = this.place(event);
      this.draw();
    },
    move(event) {
      const place = this.place(event);
      const cell = place && this.byPlace.get(place.join(":"));
      this.tip = cell ? `${cell[0]}: ${cell[4]}` : "";
      if (cell) {
        const box = this.$refs.canvas.getBoundingClientRect();
        const x = Math.min(event.clientX - box.left + 14, box.width - 320);
        this.tipStyle = { left: Math.max(0, x) + "px", top: event.clientY - box.top + 16 + "px" };
      }
      if (this.from && place) {
        this.to = place;
        this.draw();
      }
    },
    leave() {
      this.tip = "";
      this.from = this.to = null;
      this.draw();
    },
    up() {
      if (!this.from) return;
      const single = this.from.join() === this.to.join();
      if (single || !this.brushable) this.pick(this.from);
      else this.brush();
      this.from = this.to = null;
      this.draw();
    },
    pick(place) {
      const cell = this.byPlace.get(place.join(":"));
      if (!cell) return;
      this.at = place;
      this.mark(cell[0]);
      this.$emit("pick", cell[0]);
    },
    say() {
      const cell = this.byPlace.get(this.at.join(":"));
      this.spoken = cell ? `${cell[0]}: ${cell[4]}` : `${this.rows[this.at[0]]} ${this.columns[this.at[1]]}: none`;
    },
    brush() {
      const [top, left, bottom, right] = this.rectangle();
      const names = this.cells.filter((c) => c[1] >= top && c[1] <= bottom && c[2] >= left && c[2] <= right).map((c) => c[0]);
      this.spoken = `${names.length} tensors selected`;
      this.$emit("brush", names);
    },
    key(event) {
      const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (event.key in steps) {
        event.preventDefault();
        if (event.shiftKey && this.brushable && !this.from) this.from = [...this.at];
        const [dr, dc] = steps[event.key];
        this.at = [
          Math.max(0, Math.min(this.rows.length - 1, this.at[0] + dr)),
          Math.max(0, Math.min(this.columns.length - 1, this.at[1] + dc)),
        ];
        this.to = this.from && event.shiftKey ? [...this.at] : null;
        if (!event.shiftKey) this.from = null;
        this.say();
        this.draw();
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        if (this.from && this.to) this.brush();
        else this.pick([...this.at]);
        this.from = this.to = null;
        this.draw();
      } else if (event.key === "Escape") {
        this.from = this.to = null;
        this.draw();
      }
    },
  },
};
