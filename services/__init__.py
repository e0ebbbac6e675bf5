"""One folder a process. Services never import each other; they speak over the bus."""
