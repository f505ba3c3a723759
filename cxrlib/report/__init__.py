"""Report: a run, or several, as one HTML file."""
