"""What teaches: the diagrams, the claims, explorers, exercises and the sabotage lab."""
