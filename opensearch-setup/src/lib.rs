//! OpenSearch client, local node, indexes, ML Commons life cycle, ingest and search.
