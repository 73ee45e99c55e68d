"""The only modules that import video, parquet and image libraries."""
