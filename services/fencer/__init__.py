"""Makes a failed host harmless, and records the proof of it."""
