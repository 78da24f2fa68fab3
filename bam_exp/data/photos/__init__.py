"""Photos on disk: listing them, cropping them, and serving them in batches."""
