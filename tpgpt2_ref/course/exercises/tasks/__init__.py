"""The tasks, one file each: what is asked, where it starts, a solution, and the mistakes that are often made."""
