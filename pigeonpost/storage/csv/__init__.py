"""The CSV log as files: format, checksums, verification."""
