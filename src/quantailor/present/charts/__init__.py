"""Figures: described once, drawn by ECharts on a page or by matplotlib into a file.

A figure is a frozen description (`describe`); `echarts.options` and `drawing.draw` turn the same one into what a browser or a PNG shows.
"""
