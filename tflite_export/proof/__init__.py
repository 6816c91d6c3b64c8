"""A file that runs: its outputs, how far they are from the source's, how long they take."""
