"""Reading weights of one's own: any file, any format, matched to a model."""
