"""`python -m tests.lab.standin`: an agent that says which program's process it is, and lives on."""

import os
import signal
import sys

sys.stdout.write(f"agent of {' '.join(sys.orig_argv[1:3])} with {sys.argv[1:]} in {os.getcwd()}\n")
sys.stdout.flush()
signal.pause()
