"""Content-addressed artifacts that know what they were made from."""
