"""Task `tiny`: what the embedded model learns."""
