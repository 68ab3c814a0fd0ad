"""Why a command ends before it is done."""


class UserError(Exception):
    """One line that says what is wrong and what to do; the command prints it and exits with 2."""


class Interrupted(Exception):
    """SIGINT or SIGTERM asked the run to save and leave."""


class Failure(Exception):
    """What no setting has caused: one line that says what to do; the command prints it and exits with 1."""


class Stopped(Failure):
    """A failure between two steps of a run, or before a step has changed anything: its state can be saved."""
