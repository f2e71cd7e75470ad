"""The error that a user can put right."""


class UserError(Exception):
    """A bad setting, a damaged run folder, a full disk: the command line prints its one line, without a traceback."""
