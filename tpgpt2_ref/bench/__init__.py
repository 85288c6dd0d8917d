"""What is measured, and how: one file a bench, on one stopwatch."""
