"""What was measured, on which machine: recorded runs and their schema. Imports no torch."""
