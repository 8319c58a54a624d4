//! nsparse: make, ship and measure doc-only learned sparse retrieval models for OpenSearch.

fn main() {}
