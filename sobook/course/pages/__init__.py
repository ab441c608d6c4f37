"""Pages that need a browser and nothing else: explorer, playground and search."""
