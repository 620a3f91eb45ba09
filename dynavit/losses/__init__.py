"""Losses beside the task loss."""
