"""Trials to verdicts and reports: statistics, plots, pages."""
