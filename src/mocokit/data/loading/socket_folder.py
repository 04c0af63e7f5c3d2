"""Choose a folder for the sockets through which worker processes hand over their batches."""

import multiprocessing.util
import os
import sys
import tempfile

MAX_SOCKET_PATH = 103
"""Bytes of a socket's path: 107 on Linux, 103 on macOS (unix(7)). A longer one makes workers wait forever."""

NAME_BYTES = len("/pymp-abcdefgh/listener-abcdefgh")
"""Bytes that multiprocessing adds to the path of the folder for temporary files."""

OTHER_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def choose_socket_folder() -> None:
    """Make multiprocessing put its sockets into another folder if the path of the usual one (TMPDIR) is too long.

    Workflow managers and batch systems set such paths. Only sockets move; other temporary files stay in TMPDIR.

    Raises:
        ValueError: No other folder can be written.

    """
    usual = tempfile.gettempdir()
    if sys.platform == "win32" or _fits(usual):  # Windows has named pipes instead
        return
    for folder in OTHER_FOLDERS:
        if _fits(folder) and os.access(folder, os.W_OK):
            tempfile.tempdir = folder
            try:
                multiprocessing.util.get_temp_dir()  # made once, by tempfile.mkdtemp
            finally:
                tempfile.tempdir = usual
            return
    raise ValueError(
        f"TMPDIR={usual}: {len(os.fsencode(usual))} bytes, more than the {MAX_SOCKET_PATH - NAME_BYTES} that loader "
        "workers' sockets leave; set a shorter one, or use --workers 0"
    )


def _fits(folder: str) -> bool:
    return len(os.fsencode(folder)) + NAME_BYTES <= MAX_SOCKET_PATH
