"""Choose: figures and slider, the map, the table, one tensor, and the dialogs."""

from quantailor.gui.pages.choose.page import register
