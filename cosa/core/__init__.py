"""What all wings use and no paper speaks of: errors, files, the terminal, devices, processes."""

IGNORE = 255
"""In a map of labels: this position has none and counts nowhere."""
