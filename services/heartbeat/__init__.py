"""Runs on every host, or beside many libvirt URIs: observes, reports, holds the boot gate."""
