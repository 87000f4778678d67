"""One policy on several ranks."""
