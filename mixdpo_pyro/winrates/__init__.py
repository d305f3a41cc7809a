"""How often one policy's responses are preferred to another's, and at which distance from it."""
