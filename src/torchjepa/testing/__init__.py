"""Contract checks that users run on their own parts, and a harness for several processes."""
