"""How soon a crash is noticed, and how often a living host is held failed: a Monte-Carlo over simulated years."""
