"""Pages to look at in a browser: HTML from Python's values, and its looks."""
