"""Presets, read with importlib.resources; installed as `sdpo_configs`."""
