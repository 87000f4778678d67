"""Task `rubric`: checkable requirements on a text."""
