"""The model on board, and what trained it."""
