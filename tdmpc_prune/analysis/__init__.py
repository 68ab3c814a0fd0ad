"""What runs showed: figures, pictures and tables, from their metrics and their checkpoints."""
