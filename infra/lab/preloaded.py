"""What an agent's process imports, at once: `rekindle service heartbeat`."""

from libs.lean import keep_out

keep_out()

import services.cli.app
import services.heartbeat.__main__  # noqa: F401
