"""Training: the loop, its schedules, optimizer and metrics."""
