// Size against predicted divergence; the handle is dragged along the curve. See frontier.py.
const [LEFT, RIGHT, TOP, BOTTOM] = [58, 14, 18, 34];
const LETTER = 6.8; // pixels of a mark's name, at most
const STEPS = { ArrowRight: 0.005, ArrowUp: 0.005, ArrowLeft: -0.005, ArrowDown: -0.005, PageUp: 0.05, PageDown: -0.05, Home: -1, End: 1 };

export default {
  template: `
    <div ref="box" class="qt-frontier">
      <svg ref="svg" :width="width" :height="height" role="group" :aria-label="title" @pointerdown="grab" @pointermove="drag" @pointerup="drop"
        @pointercancel="drop">
        <g v-for="[value, label] in yTicks" :key="'y' + value">
          <line :x1="left" :x2="width - right" :y1="y(value)" :y2="y(value)" class="qt-grid-line"></line>
          <text :x="left - 7" :y="y(value) + 4" text-anchor="end" class="qt-axis">{{ label }}</text>
        </g>
        <g v-for="[bytes, label] in xShown" :key="'x' + bytes">
          <line :x1="x(bytes)" :x2="x(bytes)" :y1="top" :y2="height - bottom" class="qt-grid-line"></line>
          <text :x="x(bytes)" :y="height - bottom + 15" text-anchor="middle" class="qt-axis">{{ label }}</text>
        </g>
        <text :x="left" :y="11" class="qt-axis">{{ yName }}</text>
        <text :x="(left + width - right) / 2" :y="height - 4" text-anchor="middle" class="qt-axis">file size</text>
        <g v-for="[label, bytes] in cards" :key="label">
          <line :x1="x(bytes)" :x2="x(bytes)" :y1="top" :y2="height - bottom" class="qt-frontier-card"></line>
          <text :x="x(bytes) - 3" :y="top + 9" text-anchor="end" class="qt-axis">{{ label }}<title>Up to here a file fits into {{ label }}, with a seventh left for context</title></text>
        </g>
        <polygon v-if="band" :points="band" class="qt-frontier-band"></polygon>
        <polyline :points="line" class="qt-frontier-line"></polyline>
        <g v-for="[kind, label, bytes, value, told, named] in placed" :key="kind + label" class="qt-frontier-mark" :class="'qt-frontier-' + kind"
          @pointerdown.stop="$emit('release', bytes)">
          <circle v-if="kind === 'preset'" :cx="x(bytes)" :cy="y(value)" r="4"></circle>
          <rect v-else-if="kind === 'file'" :x="x(bytes) - 4" :y="y(value) - 4" width="8" height="8"></rect>
          <path v-else :d="diamond(x(bytes), y(value))"></path>
          <text v-if="named" :x="x(bytes) + 7" :y="y(value) - 4" class="qt-axis">{{ label }}</text>
          <title>{{ told }}</title>
        </g>
        <g v-if="here">
          <line :x1="x(here[0])" :x2="x(here[0])" :y1="top" :y2="height - bottom" class="qt-frontier-drop"></line>
          <line v-if="here[2]" :x1="x(here[0])" :x2="x(here[0])" :y1="y(here[2])" :y2="y(here[3])" class="qt-frontier-bar"></line>
          <circle :cx="x(here[0])" :cy="y(here[1])" r="9" class="qt-frontier-handle" tabindex="0" role="slider" aria-label="Size target"
            :aria-valuetext="said" :aria-valuenow="here[0]" :aria-valuemin="range[0]" :aria-valuemax="range[1]" @keydown="key"></circle>
        </g>
      </svg>
    </div>`,
  props: { title: String, yName: String, range: Array, points: Array, yRange: Array, xTicks: Array, yTicks: Array, marks: Array, cards: Array, at: Array, said: String },
  emits: ["drag", "release"],
  data() {
    return { width: 420, height: 190, held: null, left: LEFT, right: RIGHT, top: TOP, bottom: BOTTOM };
  },
  computed: {
    here() {
      return this.held ? [this.held, this.on(this.held)] : this.at;
    },
    // What lies below the axis is as good as the base.
    seen() {
      return this.points.filter((point) => point[1] >= this.yRange[0]);
    },
    line() {
      return this.seen.map(([bytes, value]) => `${this.x(bytes)},${this.y(value)}`).join(" ");
    },
    band() {
      const known = this.seen.filter((point) => point[2] !== null);
      const side = (at) => known.map((point) => `${this.x(point[0])},${this.y(point[at])}`);
      return known.length > 1 ? side(2).concat(side(3).reverse()).join(" ") : "";
    },
    xShown() {
      let last = -Infinity;
      return this.xTicks.filter(([bytes]) => this.x(bytes) - last > 58 && ((last = this.x(bytes)), true));
    },
    // Each with whether its name has room.
    placed() {
      const names = [];
      const free = ([from, to, y]) => names.every(([a, b, other]) => to < a || from > b || Math.abs(other - y) > 12);
      return this.marks.map((mark) => {
        const from = this.x(mark[2]) + 7;
        const place = [from, from + LETTER * mark[1].length, this.y(mark[3])];
        const named = place[1] < this.width && free(place);
        if (named) names.push(place);
        return [...mark, named];
      });
    },
  },
  watch: {
    // An answer has come: the handle goes where it says.
    at() {
      if (!this.isHeld) this.held = null;
    },
  },
  mounted() {
    this.watching = new ResizeObserver(() => {
      this.width = this.$refs.box?.clientWidth || 420;
    });
    this.watching.observe(this.$refs.box);
  },
  beforeUnmount() {
    this.watching.disconnect();
    clearTimeout(this.resting);
  },
  methods: {
    share(bytes) {
      const [low, high] = this.range;
      return Math.log(bytes / low) / Math.log(high / low || 2);
    },
    x(bytes) {
      return LEFT + Math.min(1.02, Math.max(-0.02, this.share(bytes))) * (this.width - LEFT - RIGHT);
    },
    y(value) {
      const [low, high] = this.yRange;
      const share = Math.log(Math.min(high, Math.max(low, value)) / low) / Math.log(high / low);
      return TOP + (1 - share) * (this.height - TOP - BOTTOM);
    },
    bytes(share) {
      const [low, high] = this.range;
      return Math.round(low * (high / low) ** Math.min(1, Math.max(0, share)));
    },
    // The curve's value at a size.
    on(bytes) {
      const after = this.points.findIndex((point) => point[0] >= bytes);
      if (after < 0) return this.points.length ? this.points[this.points.length - 1][1] : this.at[1];
      const [a, b] = [this.points[Math.max(0, after - 1)], this.points[after]];
      const part = a === b ? 0 : Math.log(bytes / a[0]) / Math.log(b[0] / a[0]);
      return a[1] * (b[1] / a[1]) ** part;
    },
    diamond(x, y) {
      return `M${x},${y - 5}L${x + 5},${y}L${x},${y + 5}L${x - 5},${y}Z`;
    },
    grab(event) {
      if (event.button > 0) return;
      this.$refs.svg.setPointerCapture(event.pointerId);
      this.isHeld = true;
      this.drag(event, event.target.classList.contains("qt-frontier-handle"));
      this.$el.querySelector(".qt-frontier-handle")?.focus({ preventScroll: true });
      event.preventDefault();
    },
    drag(event, stays = false) {
      if (!this.isHeld) return;
      const box = this.$refs.svg.getBoundingClientRect();
      if (stays) this.offset = event.clientX - box.left - this.x(this.at[0]);
      else {
        this.held = this.bytes((event.clientX - box.left - (this.offset || 0) - LEFT) / (this.width - LEFT - RIGHT));
        this.$emit("drag", this.held);
      }
    },
    drop() {
      [this.isHeld, this.offset] = [false, 0];
      if (this.held) this.$emit("release", this.held);
    },
    key(event) {
      if (!(event.key in STEPS) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.held = this.bytes(this.share(this.here[0]) + STEPS[event.key]);
      this.$emit("drag", this.held);
      clearTimeout(this.resting);
      this.resting = setTimeout(() => this.drop(), 350);
    },
  },
};
