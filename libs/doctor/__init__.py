"""What stands between a pool and safe failover: what was seen of it, and the findings that follow. Pure."""
