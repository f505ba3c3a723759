"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake in what the user gave: a path, a file's content, a parameter.

    The message says what is wrong, where, and what to do, in one or two lines. ``cxr`` prints it without a
    traceback and exits with 2; in a notebook it ends the cell.
    """
