"""The one exception type for bad input files."""


class DataError(Exception):
    """A file, folder, checkpoint or image is not what it should be.

    The message is one full sentence that names the file and the remedy. The command line prints it
    and exits with status 1. A wrong argument is a ValueError, which this is not.
    """
