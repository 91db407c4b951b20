"""Files whole or not at all: reading what others wrote, writing, claiming folders, resuming."""
