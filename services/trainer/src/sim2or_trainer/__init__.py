"""Trains LeRobot policies with resumable checkpoints."""
