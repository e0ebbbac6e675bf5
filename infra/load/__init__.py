"""Thousands of simulated agents on one NATS server, and a real detector beside them: does it keep up?"""
