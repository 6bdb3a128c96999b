"""What several stages share and what changes their results."""
