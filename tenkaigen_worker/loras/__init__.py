"""LoRA files: fetched, kept, checked before any GPU time, and chosen for a job."""
