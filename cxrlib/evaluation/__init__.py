"""Floor 3: predictions, metrics, intervals, figures."""
