"""The command `rekindle`."""

import os

# libvirt reads this once, when it is first imported. Its log goes to our standard error, which is for our own
# messages: errors only, unless somebody asked for more.
os.environ.setdefault("LIBVIRT_DEBUG", "4")
