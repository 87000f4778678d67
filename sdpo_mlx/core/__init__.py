"""Foundations that every package may use."""
