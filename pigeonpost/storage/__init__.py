"""Storage of samples: databases, rollups, and the CSV log's format."""
