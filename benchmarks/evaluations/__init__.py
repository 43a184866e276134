"""Measures image quality against cost for all samplers, steps and guidance of a checkpoint."""
