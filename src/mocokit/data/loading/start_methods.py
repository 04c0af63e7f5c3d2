"""Start worker processes by fork, forkserver or spawn, so that none is lost to a signal while it starts."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager

PRELOADED = "mocokit.data.loading.preloaded"
"""Module that a fork server imports before it forks workers."""


def preload_fork_server() -> None:
    """Make the fork server, if that is the start method, load what workers need; without effect once it runs.

    A worker then shares torch and the compiled loops with the server, as a forked one does with the main process,
    instead of loading them itself (docs/performance.md). What the program asked to preload stays in the list.
    """
    if multiprocessing.get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver  # missing on Windows

    asked = getattr(forkserver._forkserver, "_preload_modules", ["__main__"])
    if PRELOADED not in asked:
        multiprocessing.set_forkserver_preload([PRELOADED, *asked])


@contextmanager
def hold_signals() -> Iterator[None]:
    """Context manager that holds back Ctrl-C and SIGTERM, also in the processes that are started within it.

    A spawned process imports torch for seconds before it can say that it ignores them. A fork server is left alone:
    what it forks for the rest of the program would be deaf too. It sets its signals itself (preloaded.py).
    """
    method = multiprocessing.get_start_method()
    if method == "forkserver" or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if method == "spawn":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # it would let the signals through again when it starts
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
