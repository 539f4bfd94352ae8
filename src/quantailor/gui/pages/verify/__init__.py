"""Verify: what a built file is worth."""

from quantailor.gui.pages.verify.page import register
