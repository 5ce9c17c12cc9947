"""The process of one run: the entry point, and an end to it when the sweep that started it is gone.

    python utils/sweep/child.py PID SCRIPT [argument …]

A killed sweep can't stop its run, and one that nobody waits for would hold the machine and its own folder.
"""

import os
import runpy
import signal
import sys
import threading
import time

SECONDS = 0.5
"""Between two looks at the parent."""


def end_with(parent: int) -> None:
    """End this process, as SIGTERM does, once `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    parent, script = int(sys.argv[1]), sys.argv[2]
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    # As `python SCRIPT` has them.
    sys.argv = sys.argv[2:]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")
