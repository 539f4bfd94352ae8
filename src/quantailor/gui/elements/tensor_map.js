// A map of tensors by role and layer on one canvas; see tensor_map.py. The view scrolls as any other element; the canvas stays in
// its corner and draws the columns that are in sight.
const [THINNEST, WIDEST, FOOT, LETTER] = [5, 110, 20, 6.1];
const kept = new Map(); // What maps showed that a tab of the page took away, by the element's id.
const inks = new Map();
const inkOn = (colour) => {
  if (!inks.has(colour)) {
    const linear = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    inks.set(colour, 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#0b1220" : "#ffffff");
  }
  return inks.get(colour);
};

export default {
  template: `
    <div class="qt-map">
      <div class="qt-map-bar">
        <div class="qt-map-legend">
          <template v-if="scale">
            <span v-if="scale.low" class="qt-num">{{ scale.low }}</span>
            <span v-if="scale.low" class="qt-legend-bar" :style="{ background: scale.background }" aria-hidden="true"></span>
            <span v-if="scale.high" class="qt-num">{{ scale.high }}</span>
            <span>{{ scale.caption }}</span>
          </template>
          <template v-else>
            <component v-for="[type, colour, count] in kinds" :key="type" :is="brushable ? 'button' : 'span'" class="qt-map-kind"
              :title="brushable ? 'Select all ' + type : null" @click="brushable && brush((cell) => cell[3].text === type)">
              <span class="qt-chip" :style="{ background: colour }">{{ type }}</span> {{ count.toLocaleString("en") }}
            </component>
            <span v-if="pinned" class="qt-map-kind"><span class="qt-map-pin" aria-hidden="true"></span> {{ pinned.toLocaleString("en") }} pinned</span>
          </template>
        </div>
        <div v-if="canZoom || zoom > 1" class="qt-map-zoom">
          <button v-for="[sign, name, by] in zooms" :key="sign" :aria-label="name" :title="name" @click="zoomBy(by)">{{ sign }}</button>
        </div>
      </div>
      <div ref="view" class="qt-map-view" @scroll="soon" @wheel="wheel">
        <div :style="{ width: whole + 'px', height: height + 'px' }">
          <canvas ref="canvas" tabindex="0" role="application" :aria-label="title + '. Arrow keys move, Enter picks, plus and minus zoom.'"
            :style="{ width: width + 'px', height: height + 'px', cursor: hand }" @pointerdown="down" @pointermove="move" @pointerup="up"
            @pointercancel="leave" @pointerleave="leave" @keydown="key" @focus="soon" @blur="soon"></canvas>
        </div>
      </div>
      <div ref="tip" class="qt-map-tip" v-show="tip" :style="tipStyle">{{ tip }}</div>
      <div class="qt-sr" aria-live="polite">{{ spoken }}</div>
    </div>`,
  props: {
    title: String,
    rows: Array,
    columns: Array,
    // JSON, which Vue leaves alone: {looks: [[colour, label, text, short, doubt]], cells: [[name, row, column, look, side, pinned]]}.
    cells: String,
    order: Array,
    legend: Object,
    brushable: Boolean,
    teller: String,
    selected: { type: String, default: null },
  },
  emits: ["pick", "brush"],
  data() {
    return {
      ...{ width: 0, zoom: 1, tip: "", tipStyle: {}, spoken: "", hand: "crosshair", scale: this.legend, kinds: [], pinned: 0 },
      zooms: [["−", "Zoom out", 1 / 1.5], ["+", "Zoom in", 1.5], ["⤢", "Show all layers", 0]],
    };
  },
  computed: {
    labels() {
      const longest = Math.max(...this.rows.map((role) => role.length), 4);
      return Math.min(this.width < 460 ? 92 : 150, 14 + 6.8 * longest);
    },
    fit() {
      return Math.min(WIDEST, Math.max(THINNEST, (this.width - this.labels - 2) / this.columns.length));
    },
    columnWidth() {
      return Math.min(WIDEST, this.fit * this.zoom);
    },
    canZoom() {
      return this.fit < 14;
    },
    whole() {
      return Math.min(this.labels + 2 + this.columnWidth * this.columns.length, 30000);
    },
    rowHeight() {
      return Math.max(16, Math.min(25, Math.floor(330 / this.rows.length)));
    },
    height() {
      return this.rows.length * this.rowHeight + FOOT;
    },
  },
  watch: {
    cells() {
      this.looks = new Map();
      this.index();
      this.count();
      this.soon();
    },
  },
  created() {
    [this.at, this.over, this.from, this.to, this.marked, this.looks] = [[0, 0], null, null, null, this.selected, new Map()];
    const before = kept.get(this.$attrs.id);
    if (before) [this.all, this.looks, this.byPlace, this.byName, this.scale, this.marked] = before;
    else this.index();
    this.count();
  },
  mounted() {
    this.watching = new ResizeObserver(() => {
      this.width = this.$refs.view?.clientWidth || 0;
      this.soon();
    });
    this.watching.observe(this.$refs.view);
  },
  beforeUnmount() {
    kept.set(this.$attrs.id, [this.all, this.looks, this.byPlace, this.byName, this.scale, this.marked]);
    this.watching.disconnect();
  },
  methods: {
    index() {
      const { looks, cells } = JSON.parse(this.cells);
      const known = looks.map((look) => this.look(look));
      for (const cell of cells) {
        cell[3] = known[cell[3]];
        cell[3].count += 1;
      }
      this.all = cells;
      this.byPlace = new Map(cells.map((cell) => [cell[1] + ":" + cell[2], cell]));
      this.byName = new Map(cells.map((cell) => [cell[0], cell]));
    },
    // Cells of one look share it, and it counts them.
    look([colour, label, text, short, doubt]) {
      const key = [colour, label, text, doubt].join();
      if (!this.looks.has(key)) this.looks.set(key, { key, colour, label, text, short, doubt, count: 0 });
      return this.looks.get(key);
    },
    count() {
      const kinds = new Map();
      for (const { text, colour, count } of this.looks.values()) {
        if (!kinds.has(text)) kinds.set(text, [text, colour, 0]);
        kinds.get(text)[2] += count;
      }
      this.kinds = this.order.filter((text) => kinds.has(text)).map((text) => kinds.get(text));
      this.pinned = this.all.reduce((sum, cell) => sum + cell[5], 0);
    },
    // [[look, places], ...]; drawn once a frame, after what is more urgent.
    change(groups) {
      for (const [given, places] of groups) {
        const look = this.look(given);
        look.count += places.length;
        for (const place of places) {
          const before = this.all[place][3];
          this.all[place][3] = look;
          before.count -= 1;
          if (!before.count) this.looks.delete(before.key);
        }
      }
      if (this.spoken && document.activeElement === this.$refs.canvas && !this.from) this.say();
      this.count();
      this.soon();
    },
    pin(places) {
      const pinned = new Set(places);
      this.all.forEach((cell, place) => (cell[5] = pinned.has(place)));
      this.count();
      this.soon();
    },
    explain(legend) {
      this.scale = legend;
    },
    mark(name) {
      this.marked = name;
      const cell = this.byName.get(name);
      if (cell) {
        this.at = [cell[1], cell[2]];
        this.reveal();
      }
      this.soon();
    },
    soon() {
      if (this.drawing) return;
      this.drawing = true;
      requestAnimationFrame(() =>
        setTimeout(() => {
          this.drawing = false;
          this.draw();
        }),
      );
    },
    draw() {
      const canvas = this.$refs.canvas;
      if (!canvas || !this.width) return;
      const scale = window.devicePixelRatio || 1;
      const [wide, high] = [Math.round(this.width * scale), Math.round(this.height * scale)];
      if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
      const pen = canvas.getContext("2d");
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, wide, high);
      pen.scale(scale, scale);
      pen.save();
      const style = getComputedStyle(document.body);
      const [text, muted, accent, surface] = ["text", "muted", "accent", "surface"].map((name) => style.getPropertyValue("--qt-" + name).trim());
      const [w, h, labels] = [this.columnWidth, this.rowHeight, this.labels];
      const lit = this.over && this.byPlace.get(this.over.join(":")) ? this.over : null;
      pen.font = "11px ui-monospace, DejaVu Sans Mono, monospace";
      pen.textBaseline = "middle";
      pen.textAlign = "right";
      this.rows.forEach((role, row) => {
        pen.fillStyle = lit && lit[0] === row ? text : muted;
        pen.fillText(this.short(role), labels - 8, row * h + h / 2);
      });
      pen.beginPath();
      pen.rect(labels - 1.5, 0, this.width, this.height);
      pen.clip();
      pen.textAlign = "center";
      const every = Math.max(1, Math.ceil(28 / w));
      this.columns.forEach((label, column) => {
        const number = this.columns[0] === "—" ? column - 1 : column;
        const isLit = lit && lit[1] === column;
        if (!isLit && ((number < 0 && w < 12) || (number >= 0 && number % every) || (lit && Math.abs(lit[1] - column) * w < 24))) return;
        pen.fillStyle = isLit ? text : muted;
        pen.fillText(label, this.x(column) + w / 2, this.rows.length * h + FOOT / 2 + 1);
      });
      const gap = w > 10 ? 2 : w > 6 ? 1 : 0.4;
      pen.font = "600 10px ui-monospace, DejaVu Sans Mono, monospace";
      const room = w - gap - 2;
      const looks = [...this.looks.values()];
      const longest = (part) => Math.max(0, ...looks.map((look) => look[part].length)) * LETTER;
      const written = ["text", "short"].find((part) => longest(part) <= room);
      const sight = this.width + w;
      const origin = this.x(0);
      const seen = this.all.filter((cell) => origin + cell[2] * w >= labels - w && origin + cell[2] * w <= sight);
      for (const [, row, column, { colour, doubt }, side, pinned] of seen) {
        const left = origin + column * w;
        const [cw, ch] = [(w - gap) * side, (h - 2) * side];
        const [x, y] = [left + (w - gap - cw) / 2, row * h + (h - 2 - ch) / 2];
        pen.fillStyle = colour;
        this.tile(pen, x, y, cw, ch);
        if (doubt > 0.05) {
          const hole = 0.2 + 0.6 * doubt;
          pen.fillStyle = surface;
          this.tile(pen, x + (cw * (1 - hole)) / 2, y + (ch * (1 - hole)) / 2, cw * hole, ch * hole);
        }
        if (pinned) this.flag(pen, x + cw, y, Math.min(8, cw, ch), text, surface);
      }
      if (written) {
        for (const [, row, column, look, side] of seen) {
          const letters = (h - 2) * side < 9 ? null : [look[written], look.short].find((each) => each.length * LETTER + 2 <= (w - gap) * side);
          if (!letters) continue;
          pen.fillStyle = inkOn(look.colour);
          pen.fillText(letters, origin + column * w + (w - gap) / 2, row * h + h / 2 - 0.5);
        }
      }
      this.frameOf(pen, this.byName.get(this.marked), text, 2);
      if (lit) this.frameOf(pen, this.byPlace.get(lit.join(":")), text, 1);
      if (document.activeElement === canvas) this.frameOf(pen, this.byPlace.get(this.at.join(":")), accent, 2);
      if (this.from && this.to && this.brushable) {
        const [top, left, bottom, right] = this.rectangle();
        pen.strokeStyle = accent;
        pen.lineWidth = 2;
        pen.strokeRect(this.x(left), top * h, (right - left + 1) * w, (bottom - top + 1) * h);
      }
      pen.restore();
    },
    x(column) {
      return this.labels + column * this.columnWidth - this.$refs.view.scrollLeft;
    },
    tile(pen, x, y, w, h) {
      if (w < 12) return pen.fillRect(x, y, w, h);
      pen.beginPath();
      pen.roundRect(x, y, w, h, Math.min(3, w / 4));
      pen.fill();
    },
    flag(pen, right, top, side, colour, edge) {
      pen.beginPath();
      pen.moveTo(right - side, top);
      pen.lineTo(right, top);
      pen.lineTo(right, top + side);
      pen.closePath();
      pen.fillStyle = colour;
      pen.strokeStyle = edge;
      pen.lineWidth = 1;
      pen.fill();
      pen.stroke();
    },
    short(role) {
      const most = Math.floor((this.labels - 12) / 6.6);
      return role.length > most ? role.slice(0, most - 1) + "…" : role;
    },
    frameOf(pen, cell, colour, width) {
      if (!cell) return;
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.strokeRect(this.x(cell[2]), cell[1] * this.rowHeight, Math.max(3, this.columnWidth - 1), this.rowHeight - 1);
    },
    // [row, column]; -1 on the labels.
    place(event) {
      const box = this.$refs.canvas.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const column = x < this.labels ? -1 : Math.floor((x - this.labels + this.$refs.view.scrollLeft) / this.columnWidth);
      const row = y >= this.rows.length * this.rowHeight ? -1 : Math.floor(y / this.rowHeight);
      if (row < -1 || column < -1 || column >= this.columns.length) return null;
      return [row, column];
    },
    rectangle() {
      const [a, b] = [this.from, this.to];
      return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
    },
    down(event) {
      this.touches = event.pointerType === "touch";
      this.from = this.to = this.place(event);
      this.soon();
    },
    move(event) {
      const place = this.place(event);
      const cell = place && this.byPlace.get(place.join(":"));
      this.hand = this.brushable && place && Math.min(...place) < 0 && Math.max(...place) >= 0 ? "pointer" : "crosshair";
      this.tip = cell ? this.told(cell) : "";
      if (cell) {
        const box = this.$el.getBoundingClientRect();
        const x = Math.min(event.clientX - box.left + 14, box.width - 300);
        this.tipStyle = { left: Math.max(0, x) + "px", top: event.clientY - box.top + 18 + "px" };
      }
      if (this.from && place && !this.touches && Math.min(...this.from) >= 0 && Math.min(...place) >= 0) this.to = place;
      this.over = place;
      this.soon();
    },
    leave() {
      this.tip = "";
      this.from = this.to = this.over = null;
      this.soon();
    },
    up() {
      if (!this.from) return;
      const [row, column] = this.from;
      if (row < 0 || column < 0) {
        if (this.brushable && (row >= 0 || column >= 0)) this.brush(row < 0 ? (cell) => cell[2] === column : (cell) => cell[1] === row);
      } else if (this.from.join() === this.to.join() || !this.brushable) this.pick(this.from);
      else this.brushed();
      this.from = this.to = null;
      this.soon();
    },
    pick(place) {
      const cell = this.byPlace.get(place.join(":"));
      if (!cell) return;
      this.mark(cell[0]);
      this.$emit("pick", cell[0]);
    },
    told(cell) {
      const more = this.teller && window[this.teller]?.tell(cell[0]);
      return [cell[0], more, cell[3].label, cell[5] ? "pinned" : ""].filter(Boolean).join("\n");
    },
    say() {
      const cell = this.byPlace.get(this.at.join(":"));
      this.spoken = cell ? this.told(cell).replaceAll("\n", ", ").replace(", ", ": ") : `${this.rows[this.at[0]]} ${this.columns[this.at[1]]}: none`;
    },
    brushed() {
      const [top, left, bottom, right] = this.rectangle();
      this.brush((c) => c[1] >= top && c[1] <= bottom && c[2] >= left && c[2] <= right);
    },
    brush(holds) {
      const names = this.all.filter(holds).map((cell) => cell[0]);
      this.spoken = `${names.length} tensors selected`;
      this.$emit("brush", names);
    },
    // By a factor, or back to all for 0; what is under `x` pixels from the view's edge stays there.
    zoomBy(factor, x = (this.labels + this.width) / 2) {
      const view = this.$refs.view;
      const place = (x - this.labels + view.scrollLeft) / this.columnWidth;
      this.zoom = factor ? Math.min(WIDEST / this.fit, Math.max(1, this.zoom * factor)) : 1;
      this.$nextTick(() => {
        view.scrollLeft = place * this.columnWidth - (x - this.labels);
        this.soon();
      });
    },
    wheel(event) {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY / 300), event.clientX - this.$refs.view.getBoundingClientRect().left);
    },
    reveal() {
      const [view, w] = [this.$refs.view, this.columnWidth];
      if (!view || !this.width) return;
      const left = this.at[1] * w;
      if (left < view.scrollLeft) view.scrollLeft = left;
      else if (left + w > view.scrollLeft + this.width - this.labels) view.scrollLeft = left + w - this.width + this.labels;
    },
    key(event) {
      const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
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
        this.reveal();
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        if (this.from && this.to) this.brushed();
        else this.pick([...this.at]);
        this.from = this.to = null;
      } else if (event.key === "Escape") {
        this.from = this.to = null;
      } else if (factor !== undefined && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        this.zoomBy(factor);
      }
      this.soon();
    },
  },
};
