"""What a step of stage 1 or 2 is worth in tokens and model FLOPs."""
