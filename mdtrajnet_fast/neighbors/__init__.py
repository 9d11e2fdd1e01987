"""Which atoms are near each other, on the host and on devices."""
