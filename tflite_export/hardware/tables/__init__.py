"""One delegate a file: operation -> conditions, with the document they come from."""
