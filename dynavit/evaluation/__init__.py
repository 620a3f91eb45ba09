"""Evaluation: accuracy against MACs against measured speed."""
