"""Build: from a strategy to a file, checked."""

from quantailor.gui.pages.build.page import register
