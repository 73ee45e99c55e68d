"""Engine builders: the only modules that import an inference vendor's library."""
