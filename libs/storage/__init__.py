"""Shared datastores: each host's heartbeat slot on each of them."""
