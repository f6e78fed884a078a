"""What items say about themselves, as vectors: text encoders, files of vectors, their fusion, and search."""
