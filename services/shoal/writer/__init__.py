"""The writer: the one process that changes the truth."""
