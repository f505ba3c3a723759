"""Helper package of the chest X-ray workbook.

Each of the four layers imports only from the layers below it::

    workbook    pipeline, report, widgets, cli
    evaluation  predict, metrics, intervals, plots
    training    network, losses, stages, fit, checkpoint
    data        phantom, images, records, splits, store, batches
    (ground)    labels, paths, errors, theme, provenance

``import cxrlib`` loads no heavy library. A notebook imports the modules that it uses.
"""

__version__ = "0.1.0"
