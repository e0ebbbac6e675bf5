"""Silence becomes suspicion, other channels are asked, evidence becomes one verdict."""
