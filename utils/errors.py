"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line that names the flag or file, says what is wrong and what to do. Entry points
    print it to stderr and exit with 2; no traceback is shown.
    """
