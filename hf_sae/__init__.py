"""Sparse autoencoders and transcoders as first-class Hugging Face models."""
