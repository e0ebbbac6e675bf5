"""The command `rekindle`."""
