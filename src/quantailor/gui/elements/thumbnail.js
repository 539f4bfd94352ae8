// Types by layer and role, a pixel a tensor, as large as its place; see thumbnail.py.
export default {
  template: `<canvas ref="canvas" class="qt-thumbnail" role="img" :aria-label="title" :width="columns" :height="rows"></canvas>`,
  props: { title: String, rows: Number, columns: Number, colours: Array, cells: String },
  mounted() {
    const pen = this.$refs.canvas.getContext("2d");
    JSON.parse(this.cells).forEach(([row, column, colour]) => {
      pen.fillStyle = this.colours[colour];
      pen.fillRect(column, row, 1, 1);
    });
  },
};
