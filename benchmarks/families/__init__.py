"""Families of models: tiny random ones are trained, resumed, adapted, exported and served, and a page says what happened."""
