"""Task `judge`: a language model grades."""
