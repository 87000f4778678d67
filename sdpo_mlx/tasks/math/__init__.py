"""Task `math`: one final answer in a box."""
