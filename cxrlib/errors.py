"""Exception for mistakes that a user can correct."""


class UserError(Exception):
    """Error in the user's input: a path, the content of a file, a parameter.

    The message says in one or two lines what is wrong, where, and what to do. ``cxr`` prints it without a traceback
    and exits with code 2.
    """
