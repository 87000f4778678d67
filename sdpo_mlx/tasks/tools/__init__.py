"""Task `tools`: tool calls graded by name and arguments."""
