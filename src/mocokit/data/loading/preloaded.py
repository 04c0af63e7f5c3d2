"""Prepare a fork server, which imports this module: its workers then share torch and the compiled loops with it.

Only a fork server may import this module, because importing it changes how the process takes SIGTERM.
"""

import os
import signal


def _prepare() -> None:
    """Load what workers need, and ignore SIGTERM here, but not in the processes that are forked.

    A SIGTERM often reaches all processes of a group. Workers whose server is gone are ended by torch, which takes the
    server for the main process. The server ends by itself when no process needs it any more.
    """
    server = os.getpid()

    def obey_sigterm() -> None:
        if os.getppid() == server:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.register_at_fork(after_in_child=obey_sigterm)
    from mocokit.data.loading import loader  # noqa: F401
    from mocokit.data.pipelines import warm_up

    warm_up()


_prepare()
