"""The MLX backend; the only room that imports mlx."""
