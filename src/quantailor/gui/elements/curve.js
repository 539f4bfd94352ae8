// One tensor's error against bits per weight; the chosen point can be dragged. See curve.py.
const [LEFT, RIGHT, TOP, BOTTOM] = [54, 12, 14, 38];

export default {
  template: `
    <div ref="box" class="qt-curve" :style="{ height: height + 'px', position: 'relative' }">
      <svg ref="svg" :width="width" :height="height" role="group" :aria-label="title" style="display: block; touch-action: none">
        <g v-for="tick in yTicks" :key="'y' + tick">
          <line :x1="left" :x2="width - right" :y1="y(tick)" :y2="y(tick)" class="qt-grid-line"></line>
          <text :x="left - 8" :y="y(tick) + 4" text-anchor="end" class="qt-axis">{{ power(tick) }}</text>
        </g>
        <g v-for="tick in xTicks" :key="'x' + tick">
          <line :x1="x(tick)" :x2="x(tick)" :y1="top" :y2="height - bottom" class="qt-grid-line"></line>
          <text :x="x(tick)" :y="height - bottom + 16" text-anchor="middle" class="qt-axis">{{ tick }}</text>
        </g>
        <text :x="(left + width - right) / 2" :y="height - 5" text-anchor="middle" class="qt-axis">bits per weight</text>
        <g v-if="kneePoint">
          <line :x1="x(kneePoint[1])" :x2="x(kneePoint[1])" :y1="top" :y2="height - bottom" class="qt-knee-line"></line>
          <text :transform="'translate(' + (x(kneePoint[1]) + 12) + ',' + (top + 6) + ') rotate(90)'" class="qt-knee-text">knee {{ knee }}<title>The corner of this tensor's curve: more bits than that help it little</title></text>
        </g>
        <polyline :points="frontier" class="qt-curve-line"></polyline>
        <circle v-for="point in points" :key="point[0]" :cx="x(point[1])" :cy="y(point[2])" r="4.5" :fill="point[3]" class="qt-curve-point"
          @click="$emit('choose', point[0])"><title>{{ point[0] }}: {{ point[4] }}</title></circle>
        <circle v-if="shown" :cx="x(shown[1])" :cy="y(shown[2])" r="9" class="qt-curve-chosen" tabindex="0" role="slider"
          :aria-label="'Type of ' + name" :aria-valuetext="shown[0] + ', ' + shown[4]" :aria-valuenow="shown[1]" aria-valuemin="1" aria-valuemax="32"
          @pointerdown="grab" @pointermove="drag" @pointerup="drop" @keydown="key"></circle>
        <text v-if="shown" :x="labelX" :y="y(shown[2]) - 14" :text-anchor="labelAnchor" class="qt-curve-label">{{ shown[0] }}</text>
      </svg>
    </div>`,
  props: { title: String, name: String, points: Array, knee: String, chosen: String, height: { type: Number, default: 250 } },
  emits: ["choose"],
  data() {
    return { width: 300, held: null, left: LEFT, right: RIGHT, top: TOP, bottom: BOTTOM };
  },
  computed: {
    shown() {
      return this.points.find((point) => point[0] === (this.held || this.chosen));
    },
    kneePoint() {
      return this.points.find((point) => point[0] === this.knee);
    },
    xRange() {
      const bits = this.points.map((point) => point[1]);
      return bits.length ? [Math.floor(Math.min(...bits)), Math.ceil(Math.max(...bits)) + 0.5] : [1, 16];
    },
    yRange() {
      const errors = this.points.map((point) => point[2]);
      return errors.length ? [Math.floor(Math.min(...errors)), Math.ceil(Math.max(...errors) + 0.1)] : [-6, 0];
    },
    xTicks() {
      const [low, high] = this.xRange;
      const step = high - low > 10 ? 2 : 1;
      return Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, at) => low + at * step);
    },
    yTicks() {
      const [low, high] = this.yRange;
      const step = high - low > 8 ? 2 : 1;
      return Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, at) => low + at * step);
    },
    frontier() {
      let best = Infinity;
      return this.points
        .filter((point) => point[2] < best && ((best = point[2]), true))
        .map((point) => `${this.x(point[1])},${this.y(point[2])}`)
        .join(" ");
    },
    labelX() {
      return Math.max(LEFT + 4, Math.min(this.width - RIGHT, this.x(this.shown[1])));
    },
    labelAnchor() {
      return this.x(this.shown[1]) > this.width - 60 ? "end" : this.x(this.shown[1]) < LEFT + 30 ? "start" : "middle";
    },
  },
  mounted() {
    this.watching = new ResizeObserver(() => (this.width = this.$refs.box?.clientWidth || 300));
    this.watching.observe(this.$refs.box);
  },
  beforeUnmount() {
    this.watching.disconnect();
  },
  methods: {
    x(bits) {
      const [low, high] = this.xRange;
      return LEFT + ((bits - low) / (high - low)) * (this.width - LEFT - RIGHT);
    },
    y(error) {
      const [low, high] = this.yRange;
      return TOP + ((high - error) / (high - low)) * (this.height - TOP - BOTTOM);
    },
    power(tick) {
      return Math.abs(tick) > 4 ? `1e${tick}` : String(+(10 ** tick).toPrecision(1));
    },
    grab(event) {
      event.target.setPointerCapture(event.pointerId);
      this.held = this.chosen;
    },
    drag(event) {
      if (!this.held) return;
      const box = this.$refs.svg.getBoundingClientRect();
      const [px, py] = [event.clientX - box.left, event.clientY - box.top];
      const away = (point) => (this.x(point[1]) - px) ** 2 + ((this.y(point[2]) - py) / 3) ** 2;
      this.held = this.points.reduce((best, point) => (away(point) < away(best) ? point : best))[0];
    },
    drop() {
      const held = this.held;
      this.held = null;
      if (held && held !== this.chosen) this.$emit("choose", held);
    },
    key(event) {
      const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const at = this.points.findIndex((point) => point[0] === this.chosen) + steps[event.key];
      if (at >= 0 && at < this.points.length) this.$emit("choose", this.points[at][0]);
    },
  },
};
