"""The only one that starts VMs: under a run lease, with a token, seen running before it is said."""
