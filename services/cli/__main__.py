"""`rekindle`, and `python -m services.cli`."""

from __future__ import annotations

import sys

from libs.lean import keep_out


def main() -> None:
    if sys.argv[1:2] == ["up"]:
        keep_out()
    elif sys.argv[1:2] != ["service"]:
        keep_out("rich")
    else:
        keep_out(*(["aiohttp"] if "alerting" in sys.argv[2:3] else []))
    from services.cli.app import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
