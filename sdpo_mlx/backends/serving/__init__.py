"""An OpenAI-compatible server: requests, replies and HTTP; a backend computes the tokens."""
