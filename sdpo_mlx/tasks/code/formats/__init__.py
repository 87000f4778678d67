"""Row formats of programming problems."""
