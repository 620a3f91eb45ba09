"""Training runs as folders: their model, data and configuration, for training, evaluation and deployment."""
