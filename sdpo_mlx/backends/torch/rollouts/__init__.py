"""Engines that sample rollouts for the torch backend: the loop of `generation.py`, continuous batching, and vLLM."""
