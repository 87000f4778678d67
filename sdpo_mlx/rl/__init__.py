"""One training step: rollouts, distillation batch, optimization, metrics."""
