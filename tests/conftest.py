"""For all tests."""

from __future__ import annotations

import signal

# Whoever runs us in the background of a script has SIGINT ignored, and our children would inherit that: what a
# Ctrl-C does could not be tested. A handler is not inherited, so they begin with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
