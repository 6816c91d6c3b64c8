"""From a source to a file that satisfies its contract."""
