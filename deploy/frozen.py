"""Run first in the one-file binary: on Linux its process ends with its launcher."""

import sys

if sys.platform == "linux":
    import ctypes
    import signal

    PR_SET_PDEATHSIG = 1
    # The launcher may be killed with SIGKILL, which it cannot pass on: then the service ends too.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
