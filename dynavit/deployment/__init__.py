"""Trained models at work: exported and checked, or run on pictures."""
