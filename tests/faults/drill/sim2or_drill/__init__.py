"""A service for fault drills: every start and every step leaves a line outside, and it breaks as told."""
