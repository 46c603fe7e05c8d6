"""The one exception for input that a caller can correct."""


class InputError(ValueError):
    """An argument or a file is not what it must be.

    The message is one line that names the argument or file, what was found and what is allowed; lists of names may
    follow on lines of their own. Command lines print it and exit with code 2 instead of showing a traceback.
    """
