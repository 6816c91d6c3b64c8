"""Evidence about a file: how far it is from its source, in which layer, and how fast it is."""
