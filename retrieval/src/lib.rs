//! Inverted index, BM25, metrics, significance and mining.
