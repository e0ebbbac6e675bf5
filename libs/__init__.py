"""Shared by every service: vocabulary, events, the shell that runs a decider, ports, adapters, planning."""
