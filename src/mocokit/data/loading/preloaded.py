"""Load torch, the compiled loops and the rest of what a loader's worker needs, once.

A fork server imports this module, so that the workers that it forks have all of it and share its memory.
"""

from mocokit.data.loading import workers
from mocokit.data.pipelines import warm_up

__all__ = ["workers"]

warm_up()
