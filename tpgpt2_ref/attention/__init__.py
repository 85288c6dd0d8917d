"""Attention: which kernel (Diagrams 1 and 5), and how a batch looks to it. No collective in here."""
