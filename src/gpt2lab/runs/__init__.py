"""Runs: their settings, their folders, and a user's own mechanism."""
