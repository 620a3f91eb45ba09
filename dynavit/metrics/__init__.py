"""Accuracy, cost and speed."""
