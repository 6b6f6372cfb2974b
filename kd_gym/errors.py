"""The one exception that users see."""


class KDGymError(Exception):
    """A mistake that the user can mend. The command line prints its one line and exits with 2."""
