"""One verb a file; a task joins `core` to `storage`, names its run and reports progress."""
