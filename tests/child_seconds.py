"""The time of child processes, of which a busy machine takes none away."""

import resource


def child_seconds() -> float:
    """CPU seconds of the children that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
