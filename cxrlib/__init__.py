"""Helper package of the chest X-ray workbook.

Floors, each importing only from those below it::

    workbook    the chain of notebooks, the command line, live views
    report      a run, or several, as one HTML page
    plots       figures
    evaluation  predictions, intervals, calibration, subgroups, localisation
    training    network, losses, schedules, the training loop, checkpoints
    dataset     a data folder, opened
    phantom     a drawn data set
    data        images, records, splits, store, batches
    (ground)    labels, paths, disk, metrics, provenance, randomness

Importing ``cxrlib`` itself imports nothing heavy; a notebook imports the modules it uses.
"""

__version__ = "0.1.0"


class UserError(Exception):
    """Error in the user's input: a path, the content of a file, a parameter.

    The message says in one or two lines what is wrong, where, and what to do. ``cxr`` prints it without a traceback
    and exits with code 2.
    """
