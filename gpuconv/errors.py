"""The error for what a user can put right."""


class UserError(Exception):
    """A bad setting, a damaged run folder, a full disk: one line says what, and no traceback is wanted."""
