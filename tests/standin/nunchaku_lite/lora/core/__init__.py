"""What all kinds of transformers share."""
