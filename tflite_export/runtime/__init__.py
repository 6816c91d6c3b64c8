"""A file that runs: inputs in, outputs out, in float space, on ai_edge_litert."""
