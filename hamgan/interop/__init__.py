"""Read other frameworks' weights into our models."""
