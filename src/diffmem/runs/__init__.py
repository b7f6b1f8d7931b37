"""A run directory: content-keyed rows in append-only Parquet parts, a manifest, provenance."""
