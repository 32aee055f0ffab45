"""The `bench` command: measured times beside counted work, ceilings and a peer."""
