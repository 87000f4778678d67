"""Trackers that hear what `events.jsonl` is told: TensorBoard, Weights & Biases, trackio, MLflow."""
