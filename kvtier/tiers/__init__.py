"""Tiers below the arena. base.py is the contract of all of them, one file a kind."""
