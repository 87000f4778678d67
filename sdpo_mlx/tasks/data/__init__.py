"""Rows of a task: files, formats of files and their checks."""
