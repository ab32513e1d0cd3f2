"""What the units of a network detect and whom they serve: mergeable statistics, labels, exemplars, storage."""
