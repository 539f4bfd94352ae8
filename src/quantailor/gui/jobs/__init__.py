"""Jobs on a page: the dock below every screen, a card and a line that follow one job."""
