"""What runs a policy: the only modules that import an inference library."""
