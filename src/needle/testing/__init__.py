"""Testing: what the tests of ops are made of, for users' own ops, too."""
