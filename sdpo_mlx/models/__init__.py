"""Finding, downloading and reading base models."""
