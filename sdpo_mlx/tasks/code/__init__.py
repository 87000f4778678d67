"""Task `code`: programs graded by tests in the sandbox."""
