"""What can go wrong, in two words: the user's mistake (exit status 2) or a failure (1)."""


class UserError(Exception):
    """A mistake the user can mend. The message is one line that says what to do instead."""


class RankError(RuntimeError):
    """A rank failed or fell silent. The message names the rank and says what it last did."""
