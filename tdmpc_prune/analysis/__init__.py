"""What a run showed: figures and pictures from its metrics alone."""
