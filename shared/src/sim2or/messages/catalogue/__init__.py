"""The contract in writing: schemas, AsyncAPI, a page for people, golden samples, and what may change."""
