"""Contracts: units, joints, cameras, rates, frames; robot profiles, task profiles and scenarios."""
