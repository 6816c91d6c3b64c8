"""The teacher cache: what a teacher said of a data set, kept on disk and read beside the data."""
