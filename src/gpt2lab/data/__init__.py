"""Text to batches: corpora, tokenizers, encoded data sets and the order in which they are read."""
