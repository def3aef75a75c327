"""Models: resolve, load, adapt, score. Nothing here knows what a model is used for."""
