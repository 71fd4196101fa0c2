"""Storage on a disk or a bucket, the cache of slow look-ups, and redirected output."""
