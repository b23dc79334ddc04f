"""The only code that touches disks, object stores and hubs."""
