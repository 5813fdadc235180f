"""The tabs of the Space, one a file."""
