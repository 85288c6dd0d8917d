"""Explorers: small machines on the book's pages that answer without a kernel, and measure with one."""
