"""Adapter export formats."""
