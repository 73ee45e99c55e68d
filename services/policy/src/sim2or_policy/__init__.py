"""The inference server: observation in, action chunk out."""
