"""Floor 4: the chain of notebooks, the report, the widgets, the command line."""
