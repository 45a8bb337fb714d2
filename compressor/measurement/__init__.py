"""Judge candidates: quality, speed and joules. The only room that opens the test split."""
