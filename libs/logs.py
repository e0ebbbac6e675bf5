"""Logs: JSON lines for machines, a readable form on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from libs.config.settings import Logging


def configure(settings: Logging) -> None:
    """Set structlog up for this process: to standard error, so that results own standard output."""
    text = settings.form == "text" or (settings.form == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([] if text else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
