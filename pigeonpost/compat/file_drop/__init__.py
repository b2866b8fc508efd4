"""File drop of the older system "Access Lab": uploads of files with their SHA-256 checksums."""
