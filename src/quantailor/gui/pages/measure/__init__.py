"""Measure: what to measure and what it costs; then the map and the curves as they fill in."""

from quantailor.gui.pages.measure.page import register
