"""The parts of a search over features: terms, filters, vectors, the index file, and how hits are ranked."""
