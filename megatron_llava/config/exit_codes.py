"""What the exit code of a training process says, beside 0 (done) and 1 (a traceback, or Ctrl-C)."""

USER_ERROR = 2
"""Something that the user gave cannot be used; one line says what."""

RANK_LOST = 69
"""Another rank, or a loader worker of this one, was lost (EX_UNAVAILABLE): the same command resumes
from the last checkpoint."""

STOPPED = 75
"""SIGTERM: saved before the end of the run (EX_TEMPFAIL): the same command goes on."""
