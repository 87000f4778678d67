"""Task `science`: multiple choice."""
