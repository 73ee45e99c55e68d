"""Recordings of other programs, as episodes of ours."""
