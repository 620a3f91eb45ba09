"""Training: one loop for both tasks, resumable at any moment."""
