"""sim2or: from simulation to the operating room, one evidence chain."""

__version__ = "0.1.0"
