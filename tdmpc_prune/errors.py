"""Mistakes that a user can mend."""


class UserError(Exception):
    """One line that says what is wrong and what to do; the command prints it and exits with 2."""


class Interrupted(Exception):
    """SIGINT or SIGTERM asked the run to save and leave."""
