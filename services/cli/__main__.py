"""`rekindle`, and `python -m services.cli`."""

from __future__ import annotations

import sys

from services.cli.app import main as run


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
