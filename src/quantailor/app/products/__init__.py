"""Files that were built: checked, judged, exported, described."""
