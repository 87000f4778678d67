"""What is printed and drawn in the terminal."""
