"""The GUI: NiceGUI pages over `quantailor.app`. `serve` runs it; `quantailor gui` calls that.

server.py    address, port, token, and the server itself
guard.py     who may talk to it
desks.py     planners and drafts that pages share
context.py   what the pages share: the workspace and the folders that file pickers may show
frame.py     rail, theme and dock around every screen
theme.py     colours, the ramp of bit widths, the style sheet's variables
widgets.py   the small parts that screens are made of
elements/    parts with code of their own in the browser
jobs/        the dock below every screen, and what follows one job on a page
pages/       one module or room a screen
"""

from __future__ import annotations

from quantailor.gui.server import ServeOptions, serve
