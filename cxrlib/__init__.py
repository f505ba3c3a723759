"""Helper package of the chest X-ray workbook.

Four floors, each importing only from those below it::

    workbook    pipeline, report, widgets, cli
    evaluation  predict, metrics, intervals, plots
    training    network, losses, stages, fit, checkpoint
    data        phantom, images, records, splits, store, batches
    (ground)    labels, paths, errors, theme, provenance

Importing ``cxrlib`` itself imports nothing heavy; a notebook imports the rooms it uses.
"""

__version__ = "0.1.0"
