"""The worker: takes jobs from the queue, has them made, and puts the pictures where they belong."""
