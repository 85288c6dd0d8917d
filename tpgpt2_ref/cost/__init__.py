"""What a message, a step, a forward costs, fitted to recorded runs, with errors. No torch but in `simulate`."""
