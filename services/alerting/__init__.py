"""Hears everything, decides nothing: tells people and other systems."""
