"""Mirrors lake_assets: every module's tests lie under its own name."""
