"""One HTML file that shows what a run did: how it learned, and where student and self-teacher parted."""
