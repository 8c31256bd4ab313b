"""The error of a command that is called wrongly."""


class UsageError(Exception):
    """An argument that parses but cannot be meant; the message is one sentence with the remedy.

    `mask2former.cli.main` prints it and exits with status 2.
    """
