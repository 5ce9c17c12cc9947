"""The exceptions for a user's mistake and for being told to stop, and the line that a library's error adds to one."""

import signal


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line that names the flag or file, says what is wrong and what to do. Entry points
    print it to stderr and exit with 2; no traceback is shown.
    """


class Stopped(BaseException):
    """The process was told to end by a signal, and has left things so that the run can go on."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def first_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters; its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
