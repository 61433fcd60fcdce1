"""Trained weights at work: answers in the user's own text."""
