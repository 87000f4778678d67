"""GGUF files: import, export and their tokenizers."""
