"""Choose: figures and slider, the map, the table, one tensor, and the dialogs."""
