"""SDPO on Apple silicon: a language model learns your task from what the environment says."""

__version__ = "0.1.0"
