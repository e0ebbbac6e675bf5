"""What other systems may rely on: the published schemas, made from the code."""
